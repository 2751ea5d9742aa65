"""The live bar of a training on a terminal, wide or narrow."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

# Columns that a bar and all figures need; columns of a narrower bar besides its figures.
NARROW, BESIDE = 120, 36
# The figures that a narrow terminal shows first.
NARROW_FIGURES = ("loss", "reward", "kl")


def new_bar(console: Console, transient: bool = False) -> Progress:
    """A progress bar. Figures come last, so that a narrow terminal cuts them, not the count or the time left."""
    name = Column(no_wrap=True, max_width=14 if narrow(console) else None, overflow="ellipsis")
    return Progress(
        TextColumn("{task.description}", table_column=name),
        *(() if narrow(console) else (BarColumn(bar_width=24),)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        *(() if narrow(console) else (TimeElapsedColumn(),)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("left" if not narrow(console) else ""),
        TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=console,
        transient=transient,
    )


def figures(console: Console, parts: list[str]) -> str:
    """All figures, or as many as fit on a narrow terminal: loss, reward, KL and speed first."""
    if not narrow(console):
        return "  ".join(parts)
    ordered = sorted(parts, key=lambda part: not (part.startswith(NARROW_FIGURES) or part.endswith("tokens/s")))
    line = ""
    for part in (part.replace("tokens/s", "tok/s") for part in ordered):
        if len(line) + 1 + len(part) <= console.width - BESIDE:
            line += f" {part}" if line else part
    return line


def narrow(console: Console) -> bool:
    """Whether the terminal is too narrow for a bar and all figures."""
    return console.width < NARROW
