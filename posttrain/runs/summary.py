"""The summary of a finished run: metrics before and after, samples side by side, next commands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.table import Table

from posttrain.console import console, print_plain
from posttrain.runs.directory import RunDirectory
from posttrain.runs.metrics import before_and_after


def show(directory: RunDirectory) -> None:
    """Print the first and the last measurement, a few samples, and where everything is."""
    record = directory.record() or {}
    table = before_after(directory)
    if table.row_count:
        console.print(table)
    if directory.samples.is_file():
        from posttrain.runs.samples_table import side_by_side

        if (samples := side_by_side(directory)) is not None:
            console.print(samples)
    print_plain(f"curves   {shlex.quote(_short_path(directory.curves))}")
    print_plain(f"model    {shlex.quote(_short_path(directory.model))}")
    if record.get("tracking"):
        print_plain(f"tracking {record['tracking'].replace(f'{Path.cwd()}/', '')}")
    for line in next_steps(directory, record):
        print_plain(line)


def next_steps(directory: RunDirectory, record: dict[str, Any]) -> list[str]:
    """Commands for this run, short enough to copy: chat with it, compare it, use it, train on from it."""
    run, kind, recipe = _short_path(directory.path), record.get("trainer"), record.get("recipe")
    lines = [] if kind == "reward" else [f"talk     posttrain chat {shlex.quote(run)}"]
    siblings = [p for p in directory.path.parent.iterdir() if p != directory.path and (p / "run.json").is_file()]
    if siblings:
        lines.append(f"compare  posttrain report {shlex.quote(_short_path(directory.path.parent))}")
    merge = "" if record.get("adapter") is None else " --merge"
    lines.append(f"use      posttrain export {shlex.quote(run)}{merge}")
    follower, rows = {"sft": ("dpo", "PAIRS"), "reward": ("ppo", "PROMPTS")}.get(str(kind), ("", ""))
    if follower:
        from posttrain.runs.next_command import FAMILIES, training_command

        given = shlex.split(record.get("command", ""))
        # For an unchanged recipe: the other recipe's own data is then of the same kind.
        plain = recipe in {f"{kind}_{family}" for family in FAMILIES} and not any(
            word.startswith(("data=", "data.path=", "data.mix")) for word in given
        )
        lines.append(f"next     {training_command(follower, run, recipe, rows, plain, as_reward=kind == 'reward')}")
    return lines


def _short_path(path: Path) -> str:
    """Relative to the current folder where the path lies in it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def before_after(directory: RunDirectory) -> Table:
    """The held-out metrics at the first and at the last measurement."""
    rows = before_and_after(directory.metrics)
    measured = any(before for _, before, _ in rows)
    table = Table(title=f"{directory.name}: held out, {'before and ' if measured else ''}after", title_justify="left")
    for name in ("metric", *(["before"] if measured else []), "after"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for title, before, after in rows:
        table.add_row(title, *([before] if measured else []), after)
    return table
