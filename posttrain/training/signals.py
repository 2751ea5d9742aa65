"""SIGTERM and Ctrl-C are recorded, so that work ends at a point from which it can resume."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from posttrain.errors import Stopped


class Interrupted(Exception):
    """A signal has interrupted a measurement; the training saves a checkpoint, and repeats it after a resume."""


# Seconds after which a process that received a signal is killed, if a library has caught its exit or delays it.
EXIT_SECONDS = 10.0


class Signals:
    """In the block, SIGTERM and SIGINT are recorded in `number` instead of ending the process."""

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
    """In the block, the first SIGTERM or SIGINT is recorded, and the training acts on it; a second ends the process.

    Transformers' own `enable_jit_checkpoint` saves in the middle of a step, where an exact resume is impossible.
    """

    def _note(self, number: int, frame: FrameType | None) -> None:
        super()._note(number, frame)
        self._restore()
        # Not `print`: the signal may have interrupted one.
        message = f"{self.signal}: the run stops at the next step it can resume from; send it again to stop at once"
        os.write(2, f"\n{message}\n".encode())


class ExitOnSignal(Signals):
    """In the block, the first SIGTERM or SIGINT ends the process with one line and 143 or 130, a second one at once.

    For importing, loading and saving; the training itself uses `StopOnSignal`.
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
