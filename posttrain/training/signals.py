"""SIGTERM and Ctrl-C: noted, so that work ends at a point that it can resume from."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from posttrain.errors import Stopped


class Interrupted(Exception):
    """A measurement was left off because a signal has come; what it was for is saved where it can resume from."""


# Seconds after which a process that a signal has ended is gone, whatever still holds it: a library that swallowed the
# end, or its work at the interpreter's exit.
EXIT_SECONDS = 10.0


class Signals:
    """While entered, SIGTERM and SIGINT are noted in `number` instead of ending the process."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    @property
    def signal(self) -> str | None:
        return signal.Signals(self.number).name if self.number else None

    def __enter__(self) -> Any:
        self._before = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class StopOnSignal(Signals):
    """While entered, the first SIGTERM or SIGINT is noted for the training to act on; a second one ends the process.

    Transformers' own `enable_jit_checkpoint` saves in the middle of a step, from where a run cannot continue exactly.
    """

    def _note(self, number: int, frame: FrameType | None) -> None:
        super()._note(number, frame)
        self._restore()
        # Not `print`: the signal may have come in the middle of one. A step of a large model takes its time.
        message = f"{self.signal}: the run stops at the next step it can resume from; send it again to stop at once"
        os.write(2, f"\n{message}\n".encode())


class ExitOnSignal(Signals):
    """While entered, the first SIGTERM or SIGINT ends the process with one line and 143 or 130, a second one at once.

    For everything but the work itself (importing, loading, saving), which notes signals in its own way.
    """

    def __init__(self, command: str) -> None:
        super().__init__()
        self.command = command

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)
        super()._note(number, frame)
        os.write(2, f"\n{self.signal}: stopped. The same command resumes: {self.command}\n".encode())
        timer = threading.Timer(EXIT_SECONDS, os._exit, (128 + number,))
        timer.daemon = True
        timer.start()
        raise Stopped(128 + number)
