"""Options are read from the installed libraries' source; these tests hold that reading against the real classes."""

import dataclasses
import importlib
import inspect
import re

import pytest

from posttrain.config import options
from posttrain.config.trainers import KINDS


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_names_are_those_of_the_real_class(kind):
    cls = getattr(importlib.import_module(kind.package), kind.config)
    assert set(options.options_of(kind.config)) == {f.name for f in dataclasses.fields(cls) if f.init}


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.online], ids=lambda kind: kind.config)
def test_the_number_of_samples_per_prompt_is_the_default_of_the_real_class(kind):
    cls = getattr(importlib.import_module(kind.package), kind.config)
    (field,) = (f for f in dataclasses.fields(cls) if f.name == "num_generations")
    assert field.default == kind.generations


def test_choices_and_types_of_ppo_options_are_read_from_our_own_source():
    wrong = {"value_mode": "heads", "kl_estimator": "k4", "lam": "x", "num_ppo_epoch": 2}
    said = "\n".join(options.check("PPOConfig", wrong, "trainer.args"))
    for part in ("did you mean head?", "choose from k1, k2, k3", "lam='x': expected float", "mean num_ppo_epochs"):
        assert part in said


def test_names_are_those_of_the_real_lora_and_quantization_classes():
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    assert set(options.options_of("LoraConfig")) == {f.name for f in dataclasses.fields(LoraConfig) if f.init}
    real = set(inspect.signature(BitsAndBytesConfig).parameters) - {"kwargs"}
    assert set(options.options_of("BitsAndBytesConfig")) == real


@pytest.mark.parametrize(("cls", "name"), [(c, n) for c, names in options.CHOICES.items() for n in names])
def test_hand_listed_choices_stand_in_the_library_source(cls, name):
    text = options.source_of(cls)
    for choice in options.CHOICES[cls][name]:
        if isinstance(choice, str) and not name.startswith("bnb_4bit_compute") and "storage" not in name:
            assert re.search(rf"['\"`]{re.escape(choice)}['\"`]", text), f"{cls}.{name}={choice}: gone from the library"


def test_every_dpo_loss_type_the_library_documents_is_listed():
    text = options.source_of("DPOConfig")
    documented = re.search(r"loss_type \(`list\[str\]`.*?Possible values are:(.*?)\. If", text, re.S)
    assert documented
    assert set(re.findall(r"'(\w+)'", documented[1])) == set(options.CHOICES["DPOConfig"]["loss_type"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"betta": 0.1}, "trainer.args.betta: not an option of DPOConfig; did you mean beta?"),
        ({"packing": True}, "trainer.args.packing: not an option of DPOConfig"),
        ({"learning_rate": "fast"}, "trainer.args.learning_rate='fast': expected float"),
        ({"max_length": 1.5}, "trainer.args.max_length=1.5: expected int"),
        ({"label_smoothing": True}, "trainer.args.label_smoothing=True: expected float"),
        ({"loss_type": ["sigmoidd"]}, "did you mean sigmoid? choose from sigmoid, hinge"),
        ({"loss_type": "ipoo"}, "did you mean ipo?"),
        ({"lr_scheduler_type": "cosin"}, "did you mean cosine?"),
        ({"save_strategy": "sometimes"}, "choose from no, steps, epoch, best"),
        ({"train_sampling_strategy": "x"}, "choose from random, sequential"),
    ],
)
def test_a_wrong_option_gets_path_value_and_mend(given, said):
    (error,) = options.check("DPOConfig", given, "trainer.args")
    assert said in error


@pytest.mark.parametrize(
    "given",
    [
        {"learning_rate": 1, "beta": 0.5, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        {"loss_type": "ipo", "max_length": None, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"optim": "paged_adamw_8bit", "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "bf16": None},
    ],
)
def test_right_options_pass(given):
    assert options.check("DPOConfig", given, "trainer.args") == []


def test_a_yaml_list_is_a_tuple_where_the_library_wants_one():
    assert options.check("RLOOConfig", {"reward_clip_range": [-1, 1.5]}, "trainer.args") == []


def test_all_errors_come_at_once():
    wrong = {"betta": 1, "learning_rate": "x", "loss_type": "y"}
    assert len(options.check("DPOConfig", wrong, "trainer.args")) == 3


@pytest.mark.parametrize(
    ("kind", "args", "said"),
    [
        ("dpo", {"label_smoothing": 0.1}, "label_smoothing=0.1: TRL ignores it with loss_type=[sigmoid]; set trainer"),
        ("dpo", {"label_smoothing": 0.1, "loss_type": ["sigmoid", "sft"]}, "with loss_type=[sigmoid,sft]"),
        ("dpo", {"label_smoothing": 0.5, "loss_type": "robust"}, "divides by 1 - 2 label_smoothing; set it below 0.5"),
        ("dpo", {"loss_type": ["exo_pair"]}, "label_smoothing=0: loss_type=[exo_pair] needs it above 0"),
        ("dpo", {"label_smoothing_factor": 0.1}, "TRL's loss for dpo does not read it; set loss_type=[robust]"),
        ("reward", {"label_smoothing_factor": 0.1}, "TRL's loss for reward does not read it; leave it out"),
        ("dpo", {"label_smoothing": 0.1, "loss_type": ["robust", "sft"]}, None),
        ("dpo", {"label_smoothing": 0.001, "loss_type": "exo_pair"}, None),
        ("dpo", {"label_smoothing": "much"}, None),  # its type is told by `check`
        ("sft", {"label_smoothing_factor": 0.1}, None),
        ("kto", {}, None),
    ],
)
def test_smoothing_that_would_do_nothing_is_told(kind, args, said):
    errors = options.check_smoothing(kind, args)
    assert len(errors) == (said is not None)
    assert said is None or said in errors[0]


def test_the_losses_that_smooth_are_those_of_the_library():
    """Each branch of DPO's loss that reads `label_smoothing`, by the name it is chosen with."""
    from trl import DPOTrainer

    source = inspect.getsource(inspect.getmodule(DPOTrainer))
    branches = re.split(r'\n +(?:el)?if loss_type == "(\w+)":', source)
    read = {name for name, body in zip(branches[1::2], branches[2::2], strict=True) if "self.label_smoothing" in body}
    assert read == set(options.SMOOTHED)


def test_lora_and_quantization_typos():
    assert "did you mean lora_alpha" in options.check("LoraConfig", {"lora_alfa": 8}, "peft.lora")[0]
    assert "load_in_4bit" in options.check("BitsAndBytesConfig", {"load_in_4bits": True}, "peft.quantization")[0]
    assert (
        options.check("LoraConfig", {"init_lora_weights": "pissa_niter_4", "target_modules": "all-linear"}, "p") == []
    )
