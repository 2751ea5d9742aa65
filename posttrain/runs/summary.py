"""The summary of a finished run: metrics before and after, samples side by side, next commands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from posttrain.console import console, print_plain
from posttrain.runs.directory import RunDirectory
from posttrain.runs.metrics import before_and_after, read


def show(directory: RunDirectory) -> None:
    """Print the first and the last measurement, a few samples, and where everything is."""
    record = directory.record() or {}
    table = before_after(directory)
    if table.row_count:
        console.print(table)
    if (samples := side_by_side(directory)) is not None:
        console.print(samples)
    print_plain(f"curves   {_short_path(directory.curves)}")
    print_plain(f"model    {_short_path(directory.model)}")
    if record.get("tracking"):
        print_plain(f"tracking {record['tracking'].replace(f'{Path.cwd()}/', '')}")
    for line in next_steps(directory, record):
        print_plain(line)


def next_steps(directory: RunDirectory, record: dict[str, Any]) -> list[str]:
    """Commands that fit this run, short enough to copy: talk to it, compare it, use it, continue from it."""
    run = _short_path(directory.path)
    kind, family = record.get("trainer"), "llama" if str(record.get("recipe") or "").endswith("_llama") else "smollm2"
    if kind == "reward":
        known = record.get("recipe")
        base = f"+recipe=ppo_{family}" if known else f"trainer=ppo peft=lora model.path={record['model']['path']}"
        data = "" if known else " data.path=PROMPTS"
        return [f"next     posttrain {base}{data} reward=rm reward.rm.model={run}"]
    lines = [f"talk     posttrain chat {run}"]
    siblings = [p for p in directory.path.parent.iterdir() if p != directory.path and (p / "run.json").is_file()]
    if siblings:
        lines.append(f"compare  posttrain report {_short_path(directory.path.parent)}")
    lines.append(f"use      posttrain export {run}{' --merge' if record.get('adapter') else ''}")
    if kind == "sft":
        known = str(record.get("recipe") or "") in ("sft_smollm2", "sft_llama")
        setting = f"+recipe=dpo_{family}" if known else "trainer=dpo peft=lora data.path=PAIRS"
        model = "" if known else f" model.path={record['model']['path']}"
        lines.append(f"next     posttrain {setting}{model} model.init_from={run}")
    return lines


def _short_path(path: Path) -> str:
    """Relative to the current folder where the path lies in it."""
    return shlex.quote(str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path))


def before_after(directory: RunDirectory) -> Table:
    """The held-out metrics at the first and at the last measurement."""
    table = Table(title=f"{directory.name}: held out, before and after", title_justify="left")
    table.add_column("metric")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for row in before_and_after(directory.metrics):
        table.add_row(*row)
    return table


def side_by_side(directory: RunDirectory, count: int = 4) -> Table | None:
    """The first prompts whose completion changed, with both completions; `None` without samples."""
    rows = read(directory.samples)
    steps = sorted({row["step"] for row in rows})
    if len(steps) < 2:
        return None
    start = [row for row in rows if row["step"] == steps[0]]
    end = [row for row in rows if row["step"] == steps[-1]]
    table = Table(title="completions", title_justify="left", show_lines=True)
    for name in ("prompt", "before", "after"):
        table.add_column(name, overflow="fold", ratio=3 if name == "prompt" else 2)
    changed = [(a, b) for a, b in zip(start, end, strict=False) if a["completion"] != b["completion"]]
    for one, other in changed[:count]:
        table.add_row(*(escape(_short(t)) for t in (one["prompt"], one["completion"], other["completion"])))
    return table if changed else None


def _short(text: str, limit: int = 400) -> str:
    """The end of a long text: a question is at the end of its prompt."""
    text = text.strip()
    return text if len(text) <= limit else "… " + text[-limit:]
