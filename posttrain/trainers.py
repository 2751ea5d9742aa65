"""TRL's trainers: from the parts of a run to the trainer object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase, Trainer, TrainerCallback

    from posttrain.rewards import RewardFunction


@dataclass(frozen=True)
class Kind:
    """A trainer: its TRL class, its TRL config class, and whether it samples and so needs rewards from outside."""

    trainer: str
    config: str
    online: bool = False


KINDS = {
    "sft": Kind("SFTTrainer", "SFTConfig"),
    "reward": Kind("RewardTrainer", "RewardConfig"),
    "dpo": Kind("DPOTrainer", "DPOConfig"),
    "kto": Kind("KTOTrainer", "KTOConfig"),
    "grpo": Kind("GRPOTrainer", "GRPOConfig", online=True),
    "rloo": Kind("RLOOTrainer", "RLOOConfig", online=True),
}


@dataclass
class Parts:
    """What a trainer is built from. `args` are options of its own TRL config class; `model` is a path."""

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


def build(kind: str, parts: Parts) -> Trainer:
    """The TRL trainer of `kind`. TRL loads the model, adds the adapter, and keeps the reference.

    With an adapter the reference is the base with the adapter off; in full fine-tuning it is a second, frozen copy.
    """
    import trl

    chosen = KINDS[kind]
    args, extra = dict(parts.args), {}
    if chosen.online:
        args.setdefault("reward_weights", parts.reward_weights)
        extra["reward_funcs"] = list(parts.rewards.values())
    trainer = getattr(trl, chosen.trainer)(
        model=parts.model,
        args=getattr(trl, chosen.config)(**args),
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
        trainer.reward_func_names = list(parts.rewards)
    return trainer
