"""The one console that all output goes through, and the settings that keep libraries quiet."""

import logging
import os
import re
import sys
import textwrap
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table

from posttrain.progress_bars import counting


def printable(text: str) -> str:
    """`text` with the characters that control a terminal replaced: control characters and marks of text direction."""
    return text if text.isascii() and text.isprintable() else "".join(map(_replace_steering, text))


def _replace_steering(character: str) -> str:
    steers = unicodedata.category(character) in CONTROL_CATEGORIES or ord(character) in DIRECTION_MARKS
    return REPLACEMENT if steers and character not in "\n\t" else character


# Control characters, surrogates (they cannot be encoded), line and paragraph separators; joiners of emoji stay.
CONTROL_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
DIRECTION_MARKS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class SafeConsole(Console):
    """A console that replaces the characters that control a terminal, in all text.

    Outside a terminal it removes the blanks at the end of lines, such as those that pad a table's last column.
    """

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        segments: Iterable[Segment] = super().render(renderable, options)
        for segment in segments if self.is_terminal else _unpadded(segments):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def _unpadded(segments: Iterable[Segment]) -> Iterator[Segment]:
    for line, ended in Segment.split_lines_terminator(segments):
        while ended and line and not line[-1].control and not line[-1].text.strip(" "):
            line.pop()
        if ended and line:
            line[-1] = line[-1]._replace(text=line[-1].text.rstrip(" "))
        yield from line
        if ended:
            yield Segment.line()


def print_error(text: object) -> None:
    """Print an error to stderr; only the characters that control a terminal are replaced."""
    print(printable(str(text)), file=sys.stderr)


def main_process() -> bool:
    """Whether this process speaks and writes for all (rank 0 under `accelerate launch`)."""
    return os.environ.get("RANK", "0") == "0"


# A log file has no width of its own; tables need some.
console = SafeConsole(highlight=False, width=None if sys.stdout.isatty() else 120, quiet=not main_process())


# A log file gets a line on a task that takes longer than SLOW_SECONDS, and then one every REPORT_SECONDS.
SLOW_SECONDS = 3.0
REPORT_SECONDS = 30.0


@contextmanager
def show_status(text: str, out: Console = console) -> Iterator[None]:
    """Show what the block does, with the counts of the libraries' progress bars in place of the bars.

    A terminal shows one status line. A log file gets a line after `SLOW_SECONDS`, and more every `REPORT_SECONDS`.
    """
    with counting(text) as counted:
        if out.is_terminal:
            with out.status(counted):
                yield
            return
        said: list[str] = []

        def say() -> None:
            now = str(counted)
            if now not in said:
                print_plain(f"{now} ..." if now == text else now, out)
            said.append(now)

        with call_while_slow(say, REPORT_SECONDS):
            yield


@contextmanager
def call_while_slow(say: Callable[[], object], every: float | None = None) -> Iterator[None]:
    """Call `say` from another thread if the block lasts longer than `SLOW_SECONDS`, and then each `every` seconds."""
    over = threading.Event()

    def watch() -> None:
        pause: float | None = SLOW_SECONDS
        while pause is not None and not over.wait(pause):
            say()
            pause = every

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def print_plain(text: str, out: Console | None = None) -> None:
    """Print `text` as it is: unwrapped, ready to copy."""
    (out or console).print(text, soft_wrap=True, markup=False)


def print_facts(rows: Mapping[str, str]) -> None:
    """Print a plan, a line per fact; lines do not break between a number and its unit."""
    table = Table.grid(padding=(0, 2))
    width = max(console.width - max(map(len, rows)) - 2, 20)
    for name, text in rows.items():
        # `textwrap` does not break at a no-break space; rich does.
        joined = re.sub(r"(?<=\d) (?=[kMG]?B\b)", "\N{NO-BREAK SPACE}", text)
        parts = (
            textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in joined.splitlines()
        )
        table.add_row(f"[bold]{name}[/]", escape("\n".join(parts).replace("\N{NO-BREAK SPACE}", " ")))
    console.print(table)


def _say_retries_once(record: logging.LogRecord, said: set[str] = set()) -> bool:  # noqa: B006 - of this process
    """Keep one line for each host that does not answer, instead of two for each attempt of the hub's client."""
    host = re.search(r"thrown while requesting \w+ https?://([^/]+)", record.getMessage())
    if host:
        record.msg, record.args = f"{host[1]} does not answer; trying again for up to a minute", ()
    new = record.getMessage() not in said and not record.getMessage().startswith("Retrying in ")
    said.add(record.getMessage())
    return new


def quiet_imports() -> None:
    """Set what libraries read while they are imported: no log lines, no progress bars, no repeated warnings."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("WANDB_SILENT", "true")
    # bitsandbytes says at import that an optional CPU kernel is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("huggingface_hub.utils._http").addFilter(_say_retries_once)
    # `show_status` shows what their bars count.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def quiet_libraries() -> None:
    """As `quiet_imports`, also for libraries that are already imported."""
    quiet_imports()
    from transformers.utils.logging import disable_progress_bar, log_levels, set_verbosity

    # Transformers reads the variable at its first import only, and a check of rewards may have imported it before.
    set_verbosity(log_levels.get(os.environ["TRANSFORMERS_VERBOSITY"], logging.ERROR))
    disable_progress_bar()
