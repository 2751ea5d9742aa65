"""Callbacks that `PPOTrainer` adds by itself."""

import logging
from collections.abc import Callable
from typing import Any, ClassVar

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from .config import round_up

logger = logging.getLogger(__name__)


class RolloutCallback(TrainerCallback):
    """Takes checkpoints only at the end of a rollout, and makes the order of prompts depend on seed and epoch alone."""

    def __init__(self, sampler: Callable[[], Any]):
        self.sampler = sampler

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # `save_steps` given as a share of the run is only known now.
        state.save_steps = round_up(state.save_steps, args.steps_per_rollout)
        if state.global_step % args.steps_per_rollout:
            logger.warning(
                "The checkpoint at step %s lies inside a rollout of %s steps; the rest of it is generated anew, so "
                "this run differs from an uninterrupted one.",
                state.global_step,
                args.steps_per_rollout,
            )

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Accelerate does not reach the sampler of a resumed epoch when several processes share the batches.
        if (sampler := self.sampler()) is not None:
            sampler.set_epoch(int(state.epoch or 0))


class RolloutProgress(ProgressCallback):
    """The usual progress bar, with reward, KL and generated tokens per second next to it."""

    shown: ClassVar = {"reward": "reward", "objective/kl": "KL", "tokens_per_second": "tok/s"}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        super().on_log(args, state, control, logs=logs, **kwargs)
        if state.is_world_process_zero and self.training_bar is not None:
            postfix = {label: f"{logs[key]:.3g}" for key, label in self.shown.items() if logs.get(key) is not None}
            if postfix:
                self.training_bar.set_postfix(postfix)
