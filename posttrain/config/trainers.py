"""The trainers that a recipe can select: class, config class, package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.config.schema import Run

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Kind:
    """A trainer: its class, its config class, and the package that has both.

    `lora_rate` is the learning rate of an adapter where none is set. TRL's defaults are rates of full fine-tuning, and
    an adapter takes about ten times as much (Schulman et al. 2025, "LoRA Without Regret"; TRL's documentation of PEFT).
    A reward model's default in TRL, 1e-4, is one for adapters already.
    `generations` is the default of `num_generations` for those that sample, and so need rewards from outside.
    """

    trainer: str
    config: str
    lora_rate: float
    generations: int | None = None
    package: str = "trl"

    @property
    def online(self) -> bool:
        return self.generations is not None


KINDS = {
    "sft": Kind("SFTTrainer", "SFTConfig", 2e-4),
    "reward": Kind("RewardTrainer", "RewardConfig", 1e-4),
    "dpo": Kind("DPOTrainer", "DPOConfig", 1e-5),
    "kto": Kind("KTOTrainer", "KTOConfig", 1e-5),
    "grpo": Kind("GRPOTrainer", "GRPOConfig", 1e-5, generations=8),
    "rloo": Kind("RLOOTrainer", "RLOOConfig", 1e-5, generations=2),
    "ppo": Kind("PPOTrainer", "PPOConfig", 3e-5, generations=1, package="posttrain.ppo"),
}
# Options of PPOConfig that follow from others.
DERIVED = {
    "num_iterations": "it is num_ppo_epochs",
    "steps_per_generation": "it is gradient_accumulation_steps x num_mini_batches",
    "generation_batch_size": "it is per_device_train_batch_size x gradient_accumulation_steps x num_mini_batches x "
    "processes",
    "normalize_advantages": "PPO's is whiten_advantages",
}


def value_adapter(run: Run) -> bool:
    """Whether the run trains a value function that is an adapter of its own."""
    return run.trainer.kind == "ppo" and run.trainer.args.get("value_mode", "adapter") == "adapter"
