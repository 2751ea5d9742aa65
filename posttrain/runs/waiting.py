"""Waiting for another process that works on the same run."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock

from posttrain.console import print_plain
from posttrain.runs.directory import RunDirectory, try_lock


@contextmanager
def wait_until_free(directory: RunDirectory, message: str, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Wait until no other process has claimed the directory; others that wait here go on waiting during the block.

    `message` is printed once if it has to wait; `check` is called several times a second, and may raise. It holds a
    second lock, because the run's own process, which the block starts, takes the first.
    """
    printed = False

    def wait() -> None:
        nonlocal printed
        if not printed:
            print_plain(f"{message}; waiting for it")
        printed = True
        check()

    directory.path.mkdir(parents=True, exist_ok=True)
    queue = FileLock(directory.path / ".turn")
    while not try_lock(queue, 0.2):
        wait()
    try:
        while directory.claimed_elsewhere():
            wait()
            time.sleep(0.2)
        yield
    finally:
        queue.release()
