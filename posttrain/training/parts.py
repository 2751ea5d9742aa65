"""The parts that a trainer is built from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase, TrainerCallback

    from posttrain.rewards import RewardFunction
    from posttrain.rewards.calibration import Adjustment


@dataclass
class Parts:
    """Everything a trainer is built from. `args` are options of its own config class; `model` is a path.

    `adapter` is the folder of an adapter on `model` to train further, `lora` then its options.
    `reward_adapter` is the name and folder of a reward adapter on the policy's base, `reward_adjustment` adjusts its
    scores by its args; `reward_weights` has its weight first, then those of `rewards`. `weighted` says that pairs have
    weights. `extra_arguments` are further arguments of the trainer's constructor, by parameter. With `share_prompts`, a
    prompt is computed once for all its answers, where that is exact. Of a model that also `sees` images, only the text
    model is loaded.
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
    adapter: str | None = None
    reward_adapter: tuple[str, str] | None = None
    reward_adjustment: Adjustment | None = None
    value_lora: LoraConfig | None = None
    weighted: bool = False
    extra_arguments: dict[str, Any] = field(default_factory=dict)
    share_prompts: bool = True
    sees: bool = False

    @property
    def moves_reference(self) -> bool:
        """Whether the reference is an adapter that follows the policy (TR-DPO)."""
        return bool(self.lora is not None and self.args.get("sync_ref_model"))
