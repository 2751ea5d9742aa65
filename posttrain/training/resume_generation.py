"""Exact resumption of trainers that generate completions and learn from them for several steps.

A checkpoint does not hold the rest of a generation, so these trainers save and stop between two generations.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from posttrain.training.resume import Resumable


@dataclass
class _StepEnd:
    """The state at a step's end, from which a checkpoint can be saved after the next step has failed."""

    progress: dict[str, Any]
    random: list[Any]
    tokens: int
    whole: bool


class ResumableGeneration(Resumable):
    """Mixed into a trainer with `steps_per_generation`."""

    _step: int  # the trainer's own
    _step_begun: _StepEnd | None = None
    _step_ended: _StepEnd | None = None
    _save_later = False

    def attach(self, *args: Any) -> None:
        super().attach(*args)
        self.add_callback(_GenerationBoundaries(self))

    @property
    def within_generation(self) -> bool:
        args: Any = self.args
        if not hasattr(self, "_step") or self.state.global_step >= self.state.max_steps:
            return False
        return bool(self._step % (args.steps_per_generation * getattr(args, "num_iterations", 1)))

    def save_last_step_end(self) -> bool:
        step, ended = self.state.global_step, self._step_begun
        if ended is not None and step > 0 and self._saved_step != step and self.accelerator.num_processes == 1:
            if not ended.whole:
                return False
            _set_random_state(ended.random)
            self.state.num_input_tokens_seen = ended.tokens
            self._before_the_end, self._step = ended.progress, 0
        return super().save_last_step_end()

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.remember_step_end()

    def remember_step_end(self) -> None:
        """Store the state at a step's end, since the next step may fail."""
        self._step_begun = None
        tokens, whole = self.state.num_input_tokens_seen, not self.within_generation
        self._step_ended = _StepEnd(self._progress(), _random_state(), tokens, whole)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._save_later = self.within_generation
        if not self._save_later:
            super()._save_checkpoint(model, trial)


class _GenerationBoundaries(TrainerCallback):
    """Tracks the beginning of steps; a checkpoint that is due within a generation is saved at the generation's end."""

    def __init__(self, trainer: ResumableGeneration):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.remember_step_end()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._step_begun = self.trainer._step_ended

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._step_begun = None
        if self.trainer._save_later and not self.trainer.within_generation:
            control.should_save = True


def _random_state() -> list[Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return [random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda]


def _set_random_state(state: list[Any]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state(state[3])
