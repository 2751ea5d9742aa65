"""PPO learns to write the letter e: reward goes up in every set-up, and the KL penalty holds the policy back."""

import statistics

import pytest

from .tiny import GOLDEN, logged, lora

SETUPS = {
    "value adapter": {},
    "shared head": {"value_mode": "head", "learning_rate": 5e-3, "max_steps": 40},
    "full fine-tuning": {"value_mode": "head", "learning_rate": 5e-4, "max_steps": 40},
}


def share_of_e(completions, **_):
    return [text.count("e") / max(len(text), 1) for text in completions]


def train(make_trainer, full, **options):
    trainer = make_trainer(
        {
            "model": str(GOLDEN / "model"),
            "reward_funcs": share_of_e,
            "peft_config": None if full else lora(target_modules="all-linear"),
        },
        per_device_train_batch_size=16,
        max_completion_length=12,
        **{"max_steps": 32, "learning_rate": 1e-2, "beta": 0.0, **options},
    )
    trainer.train()
    return trainer


SLOW = [pytest.param(setup, marks=pytest.mark.slow) for setup in ("shared head", "full fine-tuning")]


@pytest.mark.parametrize("setup", ["value adapter", *SLOW])
def test_reward_goes_up(make_trainer, setup):
    rewards = logged(train(make_trainer, setup == "full fine-tuning", **SETUPS[setup]), "reward")
    assert statistics.mean(rewards[-3:]) > statistics.mean(rewards[:3]) + 0.2


def test_kl_penalty_holds_the_policy_back(make_trainer):
    free, held = (
        statistics.mean(logged(train(make_trainer, False, beta=beta, max_steps=16), "objective/kl")[-3:])
        for beta in (0.0, 0.5)
    )
    assert held < free / 2
