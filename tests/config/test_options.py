"""Options are read from the installed libraries' source; these tests hold that reading against the real classes."""

import dataclasses
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import combinations, options, trainer_names, trainers
from posttrain.errors import PosttrainError

# Some trainers need packages or machines to be imported that are not here.
HERE = [name for name in trainer_names.names() if not name.startswith("async_")]


def real(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", HERE)
def test_names_and_defaults_are_those_of_the_real_class(name):
    kind = trainers.of(name)
    known, fields = options.options_of(kind.config), dataclasses.fields(real(kind.config))
    assert set(known) == {field.name for field in fields if field.init}
    literal = {field.name: field.default for field in fields if isinstance(field.default, (int, float, str))}
    # A few defaults of Transformers are computed; whatever is read as a literal must be right.
    read = {n: known[n].default for n in literal if not isinstance(known[n].default, (options.Expression, type(None)))}
    wrong = [n for n, value in read.items() if value != literal[n]]
    assert wrong == []
    for option in ("num_generations", "max_completion_length", "max_length"):
        if option in literal:
            assert kind.default(option) == literal[option]


@pytest.mark.parametrize("name", HERE)
def test_signature_and_lineage_are_those_of_the_real_class(name):
    kind = trainers.of(name)
    cls = real(kind.path)
    given = {p for c in cls.__mro__ if c.__name__ in kind.lineage for p in inspect.signature(c.__init__).parameters}
    assert kind.parameters <= given
    shown = inspect.signature(cls.__init__).parameters.values()
    assert {p.name for p in shown if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self"} <= kind.parameters
    assert set(kind.lineage) <= {c.__name__ for c in cls.__mro__}


def test_choices_and_types_of_ppo_options_are_read_from_our_own_source():
    wrong = {"value_mode": "heads", "kl_estimator": "k4", "lam": "x", "num_ppo_epoch": 2}
    said = "\n".join(options.check("posttrain.ppo.PPOConfig", wrong, "trainer.args"))
    for part in ("did you mean head?", "choose from k1, k2, k3", "lam='x': expected float", "mean num_ppo_epochs"):
        assert part in said


def test_names_are_those_of_the_real_lora_and_quantization_classes():
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    assert set(options.options_of(options.LORA)) == {f.name for f in dataclasses.fields(LoraConfig) if f.init}
    real = set(inspect.signature(BitsAndBytesConfig).parameters) - {"kwargs"}
    assert set(options.options_of(options.QUANTIZATION)) == real


HAND_LISTED = [(cls, name) for cls, names in options.CHOICES.items() if cls != "TrainingArguments" for name in names]


def source_text(cls):
    return Path(importlib.util.find_spec(options.source_of(cls).module).origin).read_text(encoding="utf-8")


@pytest.mark.parametrize(("cls", "name"), HAND_LISTED)
def test_hand_listed_choices_stand_in_the_library_source(cls, name):
    text = source_text(cls)
    for choice in options.CHOICES[cls][name]:
        if isinstance(choice, str) and not name.startswith("bnb_4bit_compute") and "storage" not in name:
            assert re.search(rf"['\"`]{re.escape(choice)}['\"`]", text), f"{cls}.{name}={choice}: gone from the library"


def test_log_levels_and_compile_modes_are_those_of_the_libraries():
    from torch._inductor import list_mode_options
    from transformers.training_args import trainer_log_levels

    choices = options.CHOICES["TrainingArguments"]
    assert set(choices["log_level"]) == set(choices["log_level_replica"]) == set(trainer_log_levels)
    assert set(choices["torch_compile_mode"]) == {"default", *list_mode_options()}


def test_every_dpo_loss_type_the_library_documents_is_listed():
    text = source_text("trl.DPOConfig")
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
def test_a_wrong_option_gets_path_value_and_fix(given, said):
    (error,) = options.check("trl.DPOConfig", given, "trainer.args")
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
    assert options.check("trl.DPOConfig", given, "trainer.args") == []


def test_a_yaml_list_is_a_tuple_where_the_library_wants_one():
    assert options.check("trl.RLOOConfig", {"reward_clip_range": [-1, 1.5]}, "trainer.args") == []


def test_all_errors_come_at_once():
    wrong = {"betta": 1, "learning_rate": "x", "loss_type": "y"}
    assert len(options.check("trl.DPOConfig", wrong, "trainer.args")) == 3


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
    errors = combinations.check_smoothing(kind, trainers.of(kind).lineage, args)
    assert len(errors) == (said is not None)
    assert said is None or said in errors[0]


def test_the_losses_that_smooth_are_those_of_the_library():
    """Each branch of DPO's loss that reads `label_smoothing`, by the name it is chosen with."""
    from trl import DPOTrainer

    source = inspect.getsource(inspect.getmodule(DPOTrainer))
    branches = re.split(r'\n +(?:el)?if loss_type == "(\w+)":', source)
    read = {name for name, body in zip(branches[1::2], branches[2::2], strict=True) if "self.label_smoothing" in body}
    assert read == set(combinations.LOSSES_WITH_SMOOTHING)


def test_lora_and_quantization_typos():
    assert "did you mean lora_alpha" in options.check(options.LORA, {"lora_alfa": 8}, "peft.lora")[0]
    assert "load_in_4bit" in options.check(options.QUANTIZATION, {"load_in_4bits": True}, "peft.quantization")[0]
    known = {"init_lora_weights": "pissa", "target_modules": "all-linear"}
    assert options.check(options.LORA, known, "p") == []


@pytest.mark.parametrize(
    ("recipe", "given", "said"),
    [
        (
            "sft_smollm2",
            "init_lora_weights=pissa_niter_4",
            "its SVD is random, so that the saved adapter fits no other",
        ),
        ("dpo_smollm2", "bias=all", "trains the base's biases, and the base is the reference of dpo"),
        ("ppo_smollm2", "bias=lora_only", "trains the base's biases, and the base is the reference of ppo"),
    ],
)
def test_lora_options_that_would_change_the_base(recipe, given, said):
    from posttrain.jobs import preflight
    from tests.helpers.runs import compose

    with pytest.raises(PosttrainError) as error:
        preflight.check(compose(f"+recipe={recipe}", f"peft.lora.{given}")[0])
    assert str(error.value).startswith(f"peft.lora.{given}: {said}")


def test_a_gold_reward_by_another_grader_is_another_reward(tmp_path):
    from posttrain.config import probe_checks
    from tests.helpers.runs import compose

    words = ("+recipe=grpo_smollm2", "~reward", "+reward.mine.grader=a.json")
    assert probe_checks.check(compose(*words, "+probe.gold.real.grader=b.json")[0]) == []
    (error,) = probe_checks.check(compose(*words, "+probe.gold.real.grader=a.json")[0])
    assert error == "probe.gold.real: training sees reward.mine; gold must be another reward"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("comet", "disabled"), "tracking.mode=disabled: comet has auto, online, offline; set tracking=none"),
        (("tensorboard", "offline"), "tracking.mode=offline: tensorboard has auto; leave it out"),
    ],
)
def test_a_mode_that_the_tracker_does_not_have(given, said):
    from posttrain.config import backends
    from tests.helpers.runs import compose

    backend, mode = given
    (error,) = backends.check(compose("+recipe=sft_smollm2", f"tracking={backend}", f"tracking.mode={mode}")[0])
    assert error == said


def test_classes_named_through_their_module_and_modules_that_import_each_other(tmp_path, monkeypatch):
    from posttrain.config import classes

    (tmp_path / "through_module.py").write_text(
        "import trl\nimport trl.trainer as there\nclass A(trl.DPOTrainer): pass\nclass B(there.SFTTrainer): pass\n"
    )
    (tmp_path / "importing_one.py").write_text("from importing_two import Name\n")
    (tmp_path / "importing_two.py").write_text("from importing_one import Name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, base in (("A", "DPOTrainer"), ("B", "SFTTrainer")):
        found = classes.find(f"through_module.{name}")
        assert found is not None
        assert base in [one.name for one in found.lineage()]
    assert classes.find("importing_one.Name") is None


def test_an_annotation_with_a_call_is_not_evaluated(tmp_path, monkeypatch):
    from posttrain.config import options

    (tmp_path / "annotated_by_call.py").write_text("class C:\n    x: 'list[print(1)]' = None\n    y: 'int' = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = options.options_of("annotated_by_call.C")
    assert (found["x"].type, found["y"].type) == (Any, int)


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        ("BitsAndBytesConfig", "bnb_4bit_quant_type", ["nf4"]),
        ("BitsAndBytesConfig", "bnb_4bit_compute_dtype", ["bfloat16"]),
        ("DPOConfig", "optim", ["adamw_torch"]),
        ("DPOConfig", "save_strategy", ["steps"]),
        ("DPOConfig", "lr_scheduler_type", []),
    ],
)
def test_a_list_for_an_option_that_takes_one_choice(cls, name, value):
    (error,) = options.check(cls, {name: value}, "at")
    assert error.startswith(f"at.{name}={value}: ")
    assert "choose from" in error
    assert options.check("DPOConfig", {"loss_type": ["sigmoid", "sft"]}, "at") == []


def test_annotations_of_a_users_own_class(tmp_path, monkeypatch):
    (tmp_path / "annotated_freely.py").write_text(
        "class C:\n    names: Sequence[str] = ()\n    n: typing.Optional[int] = None\n    t: 'some text' = 0\n"
        "    own: Mine[int] = None\n    there: np.typing.NDArray[int] = None\n    file: typing.IO[str] = None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    given = {"names": ["a"], "n": 3, "t": 1, "own": 2, "there": [1], "file": "x"}
    assert options.check("annotated_freely.C", given, "at") == []
    said = options.check("annotated_freely.C", {"names": [1], "n": "x"}, "at")
    assert [line.partition(":")[0] for line in said] == ["at.names=[1]", "at.n='x'"]
