"""What each stage changed on the held-out task: a table on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from posttrain import report
from posttrain.rundir import RunDirectory, write_atomic

HEAD = "held out"


def cells(directory: RunDirectory) -> dict[str, str]:
    """Metric -> text: `before → after` of the probe and of the main evaluation metric, or a value and its interval."""
    record = directory.record() or {}
    intervals = record.get("intervals") or {}
    found = {
        name: f"{report.figure(record['metrics'][name])} [{report.figure(low)}, {report.figure(high)}]"
        for name, (low, high) in intervals.items()
        if name in record.get("metrics", {})
    }
    first, last, counts = report.held_out(directory.metrics)
    probed = [name for name in last if name in report.TITLES or name.startswith("probe/rewards/")]
    # The first evaluation metric is the one that people know best; the others are in the run's own table.
    main = [name for name in report.TITLES if name in last and name.startswith("eval_")][:1]
    for name in main + [name for name in probed if name.startswith("probe/")]:
        start = f"{report.before(name, first)} → " if counts[name] > 1 else ""
        found.setdefault(name, start + report.figure(last[name]))
    return found


def rows(stages: Mapping[str, RunDirectory]) -> list[list[str]]:
    """A head, then a row for each metric that any stage has; stages that measured nothing have no column."""
    columns = {name: found for name, directory in stages.items() if (found := cells(directory))}
    names = dict.fromkeys(name for found in columns.values() for name in found)
    known = [name for name in report.TITLES if name in names]
    ordered = known + [name for name in names if name not in known]
    body = [[report.title(name), *(found.get(name, "") for found in columns.values())] for name in ordered]
    return [[HEAD, *columns], *body] if body else []


def rich(table: Sequence[Sequence[str]], title: str) -> Table:
    result = Table(title=f"{title}: held out, start → end of each stage", title_justify="left")
    for index, name in enumerate(table[0]):
        result.add_column(escape(name), justify="right" if index else "left")
    for row in table[1:]:
        result.add_row(*map(escape, row))
    return result


def markdown(table: Sequence[Sequence[str]]) -> str:
    lines = [table[0], ["---", *["---:"] * (len(table[0]) - 1)], *table[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def save(path: Path, table: Sequence[Sequence[str]]) -> None:
    write_atomic(path, markdown(table))
