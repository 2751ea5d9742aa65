"""Two processes that meet on one run: the second waits for the first."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock

from posttrain.console import print_plain
from posttrain.runs.directory import RunDirectory, try_lock


@contextmanager
def wait_until_free(directory: RunDirectory, message: str, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Wait until no other process has the directory, and keep others that wait here waiting meanwhile.

    `message` is printed once, where there is something to wait for; `check` is called some times a second, and may
    raise. A second lock, because the run's own process, which is started here, takes the first.
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
