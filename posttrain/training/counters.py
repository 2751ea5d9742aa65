"""Progress of the jobs that sample or evaluate."""

from __future__ import annotations

import time

from posttrain.console import console
from posttrain.training.progress import duration
from posttrain.training.terminal_bar import new_bar


class Counter:
    """Items done of `total`, with the time left. Off a terminal: about twenty lines in all."""

    def __init__(self, label: str, total: int, done: int = 0):
        self.label, self.total, self.done = label, total, done
        self.first, self.started = done, time.monotonic()
        self.printed = (self.started, done)
        self.bar = new_bar(console) if console.is_terminal else None

    def __enter__(self) -> Counter:
        if self.bar is not None:
            self.task = self.bar.add_task(self.label, total=self.total, completed=self.done, figures="")
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, count: int, figures: str = "") -> None:
        self.done += count
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, figures=figures)
            return
        now = time.monotonic()
        waited = now - self.printed[0]
        due = waited > 60 or (waited > 1 and self.done - self.printed[1] >= self.total / 20)
        if not due and self.done < self.total:
            return
        self.printed = (now, self.done)
        left = duration((now - self.started) / max(self.done - self.first, 1) * (self.total - self.done))
        console.print("  ".join(filter(None, [f"{self.label} {self.done}/{self.total}", figures, f"{left} left"])))
