"""The one console that all output goes through, and quiet libraries beside it."""

import logging
import os
import sys
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table


def printable(text: str) -> str:
    """Text without what steers a terminal: control characters, and marks that turn the direction of what follows."""
    return text if text.isascii() and text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    steers = unicodedata.category(character) in STEERING or ord(character) in DIRECTIONS
    return REPLACEMENT if steers and character not in "\n\t" else character


# Control characters, surrogates, which no terminal can be sent, and other ends of lines; joiners of emoji stay.
STEERING = ("Cc", "Cs", "Zl", "Zp")
DIRECTIONS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class SafeConsole(Console):
    """A console that writes nothing of a text that would steer the terminal, wherever the text comes from."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def complain(text: object) -> None:
    """Print an error to stderr, as it is but for what would steer the terminal."""
    print(printable(str(text)), file=sys.stderr)


# A log file has no width of its own; tables need some.
console = SafeConsole(highlight=False, width=None if sys.stdout.isatty() else 120)


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
