"""The trainers that a recipe can select: class, config class, package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Kind:
    """A trainer: its class, its config class, and the package that has both.

    `generations` is the default of `num_generations` for those that sample, and so need rewards from outside.
    """

    trainer: str
    config: str
    generations: int | None = None
    package: str = "trl"

    @property
    def online(self) -> bool:
        return self.generations is not None


KINDS = {
    "sft": Kind("SFTTrainer", "SFTConfig"),
    "reward": Kind("RewardTrainer", "RewardConfig"),
    "dpo": Kind("DPOTrainer", "DPOConfig"),
    "kto": Kind("KTOTrainer", "KTOConfig"),
    "grpo": Kind("GRPOTrainer", "GRPOConfig", generations=8),
    "rloo": Kind("RLOOTrainer", "RLOOConfig", generations=2),
    "ppo": Kind("PPOTrainer", "PPOConfig", generations=1, package="posttrain.ppo"),
}
