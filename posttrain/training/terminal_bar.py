"""The live bar of a training on a terminal, wide or narrow."""

from typing import Any

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


def started_bar(console: Console, label: str, state: Any) -> tuple[Progress, Any]:
    """The bar of a training, shown from now on, and its task."""
    bar = new_bar(console)
    label = (label.rpartition("-")[0] or label) if narrow(console) else label
    task = bar.add_task(label, total=state.max_steps, completed=state.global_step, figures="")
    bar.start()
    return bar, task


def phase_bar(console: Console, phase: Any, shown: list[Progress]) -> tuple[Progress, Any]:
    """A bar for `phase`, and its task: only one live display can be shown, so it is the run's where there is one."""
    bar = shown[-1] if shown else phase.stack.enter_context(new_bar(console, transient=True))
    name, _, what = phase.label.partition(" ")
    task = bar.add_task(name, total=phase.total, figures=what.strip())
    phase.stack.callback(bar.remove_task, task)
    return bar, task


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
