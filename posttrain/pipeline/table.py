"""Tables of what each stage changed on the held-out task, for the terminal and Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from posttrain.runs import metrics
from posttrain.runs.directory import RunDirectory
from posttrain.runs.durable import write_atomic

TRAINING_TITLE = "training: held out, start → end of each stage"
EVALUATION_TITLE = "evaluation: held out, with {share:.0%} intervals; change is paired, over the same prompts"
# Beginnings of metrics of a second model, or of a comparison with it; these have their own column.
OTHER_MODEL_PREFIXES = ("against/", "difference/", "sampled/win_rate", "greedy/win_rate")


@dataclass(frozen=True)
class Cells:
    """A table: its title, and rows of text."""

    title: str
    rows: Sequence[Sequence[str]]


def tables(stages: Mapping[str, RunDirectory]) -> list[Cells]:
    """A table of the training stages and one of the evaluations; stages without measurements have no column."""
    records = {name: directory.record() or {} for name, directory in stages.items()}
    judged = {name: record for name, record in records.items() if record.get("intervals")}
    trained = {name: found for name in stages if name not in judged and (found := _trained(stages[name]))}
    measured: dict[str, dict[str, str]] = {}
    for name, record in judged.items():
        measured[name] = {m: _value(record, m) for m in record["metrics"] if not m.startswith(OTHER_MODEL_PREFIXES)}
        apart = {m: _value(record, f"difference/{m}") for m in measured[name] if f"difference/{m}" in record["metrics"]}
        if apart:
            measured[f"{name}: change from {_other(record, stages)}"] = apart
    share = next((record["evaluate"]["confidence"] for record in judged.values() if "evaluate" in record), 0.95)
    both = [Cells(TRAINING_TITLE, _rows(trained)), Cells(EVALUATION_TITLE.format(share=share), _rows(measured))]
    return [table for table in both if table.rows]


def _trained(directory: RunDirectory) -> dict[str, str]:
    """Metric -> `before → after`, for the probe and the best known evaluation metric."""
    first, last, counts = metrics.held_out(directory.metrics)
    main = [name for name in metrics.TITLES if name in last and name.startswith("eval_")][:1]
    probed = [name for name in last if name in metrics.TITLES or name.startswith(metrics.REQUESTED)]
    found = {}
    for name in main + [name for name in probed if name.startswith("probe/")]:
        start = f"{metrics.first_value_text(name, first)} → " if counts[name] > 1 else ""
        found[name] = start + metrics.format_number(last[name])
    return found


def _value(record: Mapping[str, Any], metric: str) -> str:
    value = metrics.format_number(record["metrics"][metric])
    ends = record["intervals"].get(metric)
    return value + (f" [{metrics.format_number(ends[0])}, {metrics.format_number(ends[1])}]" if ends else "")


def _other(record: Mapping[str, Any], stages: Mapping[str, RunDirectory]) -> str:
    """The stage, or model, that a stage is compared with."""
    against = record["evaluate"]["against"]
    return next((name for name, d in stages.items() if d.path == Path(against).absolute()), against)


def _rows(columns: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    names = dict.fromkeys(name for found in columns.values() for name in found)
    known = [name for name in metrics.TITLES if name in names]
    rows = {name: [found.get(name, "") for found in columns.values()] for name in [*known, *names]}
    for kind in ("sampled", "greedy"):
        parts = [row for name, row in rows.items() if name.startswith(f"{kind}/rewards/")]
        if rows.get(f"{kind}/score") in parts:
            del rows[f"{kind}/score"]  # with one reward, the score is the same number
    return [["held out", *columns], *([metrics.title(name), *row] for name, row in rows.items())] if rows else []


def rich(table: Cells) -> Table:
    result = Table(title=table.title, title_justify="left")
    for index, name in enumerate(table.rows[0]):
        result.add_column(escape(name), justify="right" if index else "left")
    for row in table.rows[1:]:
        result.add_row(*map(escape, row))
    return result


def save(path: Path, found: Sequence[Cells]) -> None:
    write_atomic(path, "\n".join(_markdown(table) for table in found))


def _markdown(table: Cells) -> str:
    head = table.rows[0]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *table.rows[1:]]
    return f"{table.title}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in lines)
