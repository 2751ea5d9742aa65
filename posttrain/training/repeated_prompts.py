"""The order of rows in trainers that repeat prompts in a batch (`RepeatSampler` of TRL), as an exact resume needs it.

TRL's sampler would start again with the first epoch's order when a later epoch is resumed.
"""

from typing import Any

from transformers import TrainerCallback
from trl.trainer.utils import RepeatSampler

from posttrain.ppo.rollout import EpochSampler

OPTIONS = ("data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed")


def ordered_by_epoch(trainer: Any, sampler: RepeatSampler) -> EpochSampler:
    """`sampler` with an order that depends on the seed and the epoch only; `trainer` will tell it the epoch."""
    if not isinstance(sampler, EpochSampler):
        sampler = EpochSampler(**{name: getattr(sampler, name) for name in OPTIONS})
    trainer.add_callback(_Epochs(sampler))
    return sampler


class _Epochs(TrainerCallback):
    """Tells the sampler the epoch; accelerate does not where several processes share the batches of a resumed one."""

    def __init__(self, sampler: EpochSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))
