"""A stop from outside (SIGTERM, Ctrl-C) ends the training after the current step, with a checkpoint.

PPO ends after the current rollout: its rest is not in a checkpoint, so from within one a run could not go on exactly.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from transformers import TrainerCallback


class Interrupt(TrainerCallback):
    """While entered, the first SIGTERM or SIGINT is noted and acted on at the end of the step; a second one kills.

    Transformers' own `enable_jit_checkpoint` saves in the middle of a step, from where a run cannot continue exactly.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    @property
    def signal(self) -> str | None:
        return signal.Signals(self.number).name if self.number else None

    def __enter__(self) -> Interrupt:
        self._before = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.number and state.global_step % getattr(args, "steps_per_rollout", 1) == 0:
            control.should_save = True
            control.should_training_stop = True
            control.should_evaluate = False
