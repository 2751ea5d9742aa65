"""What a person reads of a run: its plan, its table before and after, samples side by side, its curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from posttrain.console import console, tell
from posttrain.runs.directory import RunDirectory
from posttrain.runs.metrics import ASKED, TITLES, before, figure, held_out, read, title

if TYPE_CHECKING:
    pass


def show(directory: RunDirectory) -> None:
    """What changed between the first and the last measurement, a few samples, and where everything is."""
    record = directory.record() or {}
    table = before_after(directory)
    if table.row_count:
        console.print(table)
    if (samples := side_by_side(directory)) is not None:
        console.print(samples)
    tell(f"curves   {directory.curves}")
    tell(f"model    {directory.model}")
    tell(f"run      {directory.path}")
    if record.get("tracking"):
        tell(f"tracking {record['tracking']}")
    if command := record.get("command"):
        tell(f"next     {command} {_next(record)}")


def _next(record: dict[str, Any]) -> str:
    beta = {"dpo": "0.05", "kto": "0.05", "grpo": "0.04", "rloo": "0.1", "ppo": "0.2"}.get(record["trainer"])
    return f"trainer.args.beta={beta}" if beta else "trainer.args.learning_rate=5e-5"


def before_after(directory: RunDirectory) -> Table:
    """The held-out metrics at the first and at the last measurement."""
    first, last, counts = held_out(directory.metrics)
    shown = [k for k in TITLES if k in last] + sorted(k for k in last if k.startswith(ASKED))
    table = Table(title=f"{directory.name}: held out, before and after", title_justify="left")
    table.add_column("metric")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for key in shown:
        table.add_row(title(key), before(key, first) if counts[key] > 1 else "", figure(last[key]))
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
    """The end of a long text: a question stands at the end of its prompt."""
    text = text.strip()
    return text if len(text) <= limit else "… " + text[-limit:]
