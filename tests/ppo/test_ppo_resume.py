"""A run that was interrupted and resumed ends bit-identical to one that was not."""

import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from posttrain.ppo import PPOConfig, PPOTrainer

from .tiny import PROMPTS, logged, lora, weights

# 16 prompts are two rollouts of 8 per epoch; each takes 2 * 2 optimizer steps.
RUN = {
    "train_dataset": Dataset.from_dict({"prompt": PROMPTS[:16]}),
}
OPTIONS = {
    "num_mini_batches": 2,
    "max_steps": -1,
    "num_train_epochs": 3,
    "save_strategy": "steps",
    "save_steps": 4,
    "kl_target": 1.0,
    "kl_horizon": 100,
    "learning_rate": 0.02,
    "lr_scheduler_type": "linear",
    "value_learning_rate": 0.05,
}
SETUPS = {
    "shared head": ({}, {"value_mode": "head"}),
    "full fine-tuning": ({"peft_config": None}, {"value_mode": "head"}),
}


def check_resume(make_trainer, tmp_path, arguments, options, step):
    whole = make_trainer({**RUN, **arguments}, **{**OPTIONS, **options, "output_dir": str(tmp_path / "whole")})
    whole.train()
    resumed = make_trainer({**RUN, **arguments}, **{**OPTIONS, **options, "output_dir": str(tmp_path / "resumed")})
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert resumed.state.global_step == whole.state.global_step
    expected, actual = weights(whole), weights(resumed)
    assert expected.keys() == actual.keys()
    assert not [name for name in expected if not torch.equal(expected[name], actual[name])]
    assert resumed.kl_controller.value == whole.kl_controller.value != options.get("beta", 0.05)
    for name in ("loss/policy", "objective/kl", "reward", "kl_coef"):
        assert logged(resumed, name) == logged(whole, name)
    for one, other in zip(whole.optimizer.param_groups, resumed.optimizer.param_groups, strict=True):
        assert {k: v for k, v in one.items() if k != "params"} == {k: v for k, v in other.items() if k != "params"}


@pytest.mark.parametrize("step", [4, 8, 20], ids=["within the first epoch", "between epochs", "within the third epoch"])
def test_resume(make_trainer, tmp_path, step):
    check_resume(make_trainer, tmp_path, {}, {}, step)


@pytest.mark.parametrize("setup", SETUPS)
def test_resume_of_other_set_ups(make_trainer, tmp_path, setup):
    check_resume(make_trainer, tmp_path, *SETUPS[setup], 12)


def test_prompts_come_in_another_order_in_every_epoch(make_trainer):
    orders: list[list[str]] = [[], [], []]

    class Watch(PPOTrainer):
        def _generate(self, prompts):
            orders[int(self.state.epoch)].extend(prompts)
            return super()._generate(prompts)

    prompts = [f"p{i}" for i in range(8)]
    make_trainer(
        {"train_dataset": Dataset.from_dict({"prompt": prompts})}, Watch, max_steps=-1, num_train_epochs=3
    ).train()
    assert all(sorted(order) == prompts for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_resume_from_a_starting_adapter(make_trainer, tmp_path, load_policy):
    torch.manual_seed(3)
    get_peft_model(load_policy(), lora(init_lora_weights=False)).save_pretrained(tmp_path / "sft")

    def make(arguments, **options):
        policy = PeftModel.from_pretrained(load_policy(), tmp_path / "sft", is_trainable=True)
        return make_trainer({**arguments, "model": policy, "peft_config": None}, **options)

    check_resume(make, tmp_path, {}, {}, 12)


def test_resume_with_a_reward_adapter_and_checkpointing(make_trainer, tmp_path, reward_dir):
    arguments = {"reward_adapter": reward_dir, "reward_funcs": None}
    check_resume(make_trainer, tmp_path, arguments, {"value_init": "reward", "gradient_checkpointing": True}, 12)


def test_checkpoint_holds_weights_as_safetensors_only(make_trainer, tmp_path, reward_dir):
    trainer = make_trainer(
        {"reward_adapter": reward_dir, "reward_funcs": None}, save_strategy="steps", save_steps=1, max_steps=2
    )
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    files = {str(f.relative_to(checkpoint)) for f in checkpoint.rglob("*") if f.is_file()}
    assert files >= {
        "adapter_model.safetensors", "value/adapter_model.safetensors", "value_head.safetensors", "ppo_state.json",
        "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
    }  # fmt: skip
    assert not [f for f in files if "reward" in f]
    assert not [f for f in files if f.endswith(".bin") and f != "training_args.bin"]


def test_saved_policy_loads_without_this_package(make_trainer, tmp_path, load_policy):
    trainer = make_trainer()
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    loaded = PeftModel.from_pretrained(load_policy(), tmp_path / "final")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trainer.model(input_ids=ids).logits)


def test_saved_full_model_has_no_value_head(make_trainer, tmp_path):
    trainer = make_trainer({"peft_config": None}, value_mode="head")
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    assert not [name for name in load_file(tmp_path / "final" / "model.safetensors") if "value_head" in name]
    assert (tmp_path / "final" / "value_head.safetensors").is_file()
    assert "value_head.weight" in dict(trainer.model.named_parameters())


@pytest.mark.parametrize("missing", ["value_head.safetensors", "value", "ppo_state.json"])
def test_incomplete_checkpoint_is_refused(make_trainer, tmp_path, missing):
    make_trainer(save_strategy="steps", save_steps=2, max_steps=2).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    path = checkpoint / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=missing):
        make_trainer(max_steps=4).train(resume_from_checkpoint=str(checkpoint))


def test_best_model_is_loaded_at_the_end(make_trainer, tmp_path):
    trainer = make_trainer(
        {
            "eval_dataset": Dataset.from_dict({"prompt": PROMPTS[:4]}),
            # Gets worse with every step.
            "reward_funcs": lambda prompts, trainer_state, **_: [-float(trainer_state.global_step)] * len(prompts),
        },
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=2,
        eval_steps=2,
        max_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="eval_reward",
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-2"
    assert torch.equal(load_file(best / "value_head.safetensors")["weight"], trainer.roles.value_head.weight)


@pytest.mark.parametrize(("asked", "expected"), [(1, 8), (8, 8), (9, 16), (500, 504)])
def test_save_steps_are_rounded_up_to_whole_rollouts(tmp_path, asked, expected):
    args = PPOConfig(tmp_path, save_steps=asked, num_ppo_epochs=4, num_mini_batches=2, use_cpu=True, bf16=False)
    assert args.save_steps == expected


def test_save_steps_as_a_share_of_the_run_are_rounded_too(make_trainer, tmp_path):
    make_trainer(save_strategy="steps", save_steps=0.1, max_steps=8).train()
    saved = {int(f.name.split("-")[1]) for f in (tmp_path / "run").glob("checkpoint-*")}
    assert saved == {2, 4, 6, 8}
