"""A stop from outside (SIGTERM, Ctrl-C) ends the training after the current step, with a checkpoint."""

from __future__ import annotations

import os
from types import FrameType

from posttrain.training.signals import Signals


class Interrupt(Signals):
    """While entered, the first SIGTERM or SIGINT is noted, for who works to act on; a second one ends the process.

    Transformers' own `enable_jit_checkpoint` saves in the middle of a step, from where a run cannot continue exactly.
    """

    def _note(self, number: int, frame: FrameType | None) -> None:
        super()._note(number, frame)
        self._restore()
        # Not `print`: the signal may have come in the middle of one. A step of a large model takes its time.
        said = f"{self.signal}: the run stops at the next step it can resume from; send it again to stop at once"
        os.write(2, f"\n{said}\n".encode())
