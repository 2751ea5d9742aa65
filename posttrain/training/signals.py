"""SIGTERM and Ctrl-C, noted, so that work ends where it can go on from."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """A measurement was left off because a signal has come; what it was for is saved where it can go on from."""


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
