"""TRL's trainers, and our PPO trainer: from the parts of a run to the trainer object."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase, Trainer, TrainerCallback

    from posttrain.rewards import RewardFunction


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


@dataclass
class Parts:
    """What a trainer is built from. `args` are options of its own config class; `model` is a path.

    `reward_adapter` is the name and folder of a reward that lives on the policy's base; `reward_weights` has its weight
    first, then those of `rewards`.
    """

    model: str
    args: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    eval: Dataset | None
    lora: LoraConfig | None
    quantization: BitsAndBytesConfig | None
    callbacks: list[TrainerCallback]
    rewards: dict[str, RewardFunction]
    reward_weights: list[float]
    reward_adapter: tuple[str, str] | None = None
    value_lora: LoraConfig | None = None


def build(kind: str, parts: Parts) -> Trainer:
    """The trainer of `kind`. It loads the model, adds the adapter, and keeps the reference.

    With an adapter the reference is the base with the adapter off; in full fine-tuning it is a second, frozen copy.
    """
    chosen = KINDS[kind]
    library = importlib.import_module(chosen.package)
    args: dict[str, Any] = dict(parts.args)
    extra: dict[str, Any] = {}
    names = list(parts.rewards)
    if chosen.online:
        args.setdefault("reward_weights", parts.reward_weights)
        extra["reward_funcs"] = list(parts.rewards.values())
    if kind == "ppo":
        extra["value_peft_config"] = parts.value_lora
        if parts.reward_adapter is not None:
            name, extra["reward_adapter"] = parts.reward_adapter
            names = [name, *names]
    trainer = getattr(library, chosen.trainer)(
        model=parts.model,
        args=getattr(library, chosen.config)(**args),
        processing_class=parts.tokenizer,
        train_dataset=parts.train,
        eval_dataset=parts.eval,
        peft_config=parts.lora,
        quantization_config=parts.quantization,
        callbacks=parts.callbacks,
        **extra,
    )
    if chosen.online:
        # TRL logs rewards/NAME/mean under the functions' names; the config's names tell two uses of one apart.
        trainer.reward_func_names = names
    return trainer
