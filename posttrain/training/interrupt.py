"""A stop from outside (SIGTERM, Ctrl-C) ends the training after the current step, with a checkpoint.

PPO ends after the current rollout: its rest is not in a checkpoint, so from within one a run could not go on exactly.
"""

from __future__ import annotations

import os
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from posttrain.training.signals import Signals


class Interrupt(Signals, TrainerCallback):
    """While entered, the first SIGTERM or SIGINT is noted and acted on at the end of the step; a second one kills.

    Transformers' own `enable_jit_checkpoint` saves in the middle of a step, from where a run cannot continue exactly.
    """

    def _note(self, number: int, frame: FrameType | None) -> None:
        super()._note(number, frame)
        self._restore()
        # Not `print`: the signal may have come in the middle of one. A step of a large model takes its time.
        os.write(2, f"\n{self.signal}: stopping as soon as it can go on from there; once more stops at once\n".encode())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.number and state.global_step % getattr(args, "steps_per_rollout", 1) == 0:
            control.should_save = True
            control.should_training_stop = True
            control.should_evaluate = False
