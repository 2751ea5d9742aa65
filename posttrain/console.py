"""The one console that all output goes through, and quiet libraries beside it."""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Table

# A log file has no width of its own; tables need some.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


# Seconds of silence after which a log file is told what takes so long.
PATIENCE = 3.0


@contextmanager
def working(text: str) -> Iterator[None]:
    """Say what is being done: a spinner on a terminal; in a log file one line, if it takes a while."""
    if console.is_terminal:
        with console.status(text):
            yield
        return
    with waiting(lambda: tell(f"{text} ...")):
        yield


@contextmanager
def waiting(say: Callable[[], None]) -> Iterator[None]:
    """Call `say` once, from another thread, if the block lasts longer than `PATIENCE`."""
    timer = threading.Timer(PATIENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def tell(text: str) -> None:
    """Print `text` as it is: unwrapped, ready to copy."""
    console.print(text, soft_wrap=True, markup=False)


def facts(rows: Mapping[str, str]) -> None:
    """Print a plan, a line per fact."""
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        table.add_row(f"[bold]{name}[/]", escape(text))
    console.print(table)


def quiet_libraries() -> None:
    """Leave only what a user can act on: no import chatter, no per-file bars off a terminal, no repeated warnings."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("WANDB_SILENT", "true")
    # bitsandbytes says at import that an optional CPU kernel is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not console.is_terminal:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
