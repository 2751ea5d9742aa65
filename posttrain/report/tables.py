"""The comparison as rows, for a terminal, CSV, Markdown and JSON."""

import csv
import io
import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.markup import escape
from rich.table import Table

from posttrain.console import console, print_plain
from posttrain.report.compare import START, Comparison, title
from posttrain.report.groups import Group, number
from posttrain.report.runs import Run

# Metrics of job=sample and job=evaluate that are shown, so that they fit a line.
LINE_METRICS = ("score", "best_of_n", "kept", "win_rate", "accuracy", "perplexity", "ended")


# Rewards in the main table, the metric of the report first; CSV and JSON have all.
REWARDS = 3
# Runs whose settings are shown side by side in a terminal.
SIDE_BY_SIDE = 5
# A word longer than this is broken in a terminal.
LONGEST = 32


def header(c: Comparison) -> list[str]:
    rewards = [title(metric) for metric in c.rewards[:REWARDS]]
    return ["run", "KL (nats)", *rewards, title("probe/length"), "front", "status", "seeds", "steps", "alarms"]


def cells(c: Comparison, group: Group) -> list[str]:
    """A line of the main table; ± is the standard deviation between seeds, or for one seed the standard error."""
    means = [group.mean(metric) for metric in ("probe/kl", *c.rewards[:REWARDS], "probe/length")]
    return [
        group.label,
        *("" if mean is None else str(mean) for mean in means),
        "yes" if any(c.compared[i] is group for i in c.front) else "",
        group.status,
        ", ".join(map(str, group.seeds)),
        str(max((step for run in group.counted for step in run.points), default=0)),
        ", ".join(dict.fromkeys(str(alarm.get("name")) for alarm in group.alarms)),
    ]


def rows(c: Comparison) -> list[list[str]]:
    return [header(c), *(cells(c, group) for group in c.groups)]


def held_out(c: Comparison) -> list[list[str]]:
    """The metrics of each run on its held-out rows."""
    found = [["run", "rows", *map(title, c.held_out)]]
    for group in c.groups:
        # Beside a reward the loss is a surrogate, which compares with nothing.
        surrogate = group.mean("eval_reward") is not None
        means = [None if surrogate and metric == "eval_loss" else group.mean(metric) for metric in c.held_out]
        if any(means):
            counts = dict.fromkeys(str(run.held_out_rows or "") for run in group.counted)
            found.append([group.label, ", ".join(counts), *("" if mean is None else str(mean) for mean in means)])
    return found if len(found) > 1 else []


def failure_modes(c: Comparison) -> list[list[str]]:
    """The metrics of failure modes: the common start once, then the final values of each group.

    A group with another start has its own start before an arrow.
    """
    found = [["run", *map(title, c.modes)]]
    starts = {}
    for metric in c.modes:
        values = [mean.value for group in c.probed if (mean := group.mean(metric, start=True))]
        if values:
            starts[metric] = number(fmean(values))
    if starts:
        found.append([START, *(starts.get(metric, "") for metric in c.modes)])
    for group in c.groups:
        line = [_end(group, metric, any(group is other for other in c.probed)) for metric in c.modes]
        if any(line):
            found.append([group.label, *line])
    return found if len(found) > 1 and c.modes else []


def _end(group: Group, metric: str, compared: bool) -> str:
    end, start = group.mean(metric), group.mean(metric, start=True)
    if end is None or compared or start is None:
        return "" if end is None else f"{number(end.value)}{end.then}"
    return f"{number(start.value)} → {number(end.value)}{end.then}"


def alarms(c: Comparison) -> list[list[str]]:
    lines = [
        [str(alarm[key]) if key in alarm else "" for key in ("run", "name", "step", "message")]
        for group in c.groups
        for alarm in group.alarms
    ]
    return [["run", "alarm", "step", "message"], *lines] if lines else []


def settings(c: Comparison) -> list[list[str]]:
    """The settings that differ, a line a setting."""
    if not c.settings:
        return []
    return [["setting", *(group.label for group in c.groups)], *([key, *row] for key, row in c.settings.items())]


def others(c: Comparison) -> list[list[str]]:
    """A line for each run of job=sample and job=evaluate, and for each pipeline."""
    lines = [
        [run.name, run.job, str(run.record.get("model", {}).get("path", "")), run.status, description(run)]
        for run in c.others
    ]
    for path, pipeline in c.found.pipelines.items():
        stages = ", ".join(f"{name} {status}" for name, status in pipeline["stages"].items())
        lines.append([path.name, "pipeline", "", pipeline["status"], stages])
    return [["run", "job", "model", "status", "measured"], *lines] if lines else []


def description(run: Run) -> str:
    metrics = {k: v for k, v in run.record.get("metrics", {}).items() if isinstance(v, (int, float))}
    ends = run.record.get("intervals", {})
    parts = []
    for key, value in metrics.items():
        if key.rpartition("/")[2] in LINE_METRICS and not key.startswith(("against/", "difference/")):
            interval = f" [{number(ends[key][0])}, {number(ends[key][1])}]" if ends.get(key) else ""
            parts.append(f"{key} {value if isinstance(value, int) else number(value)}{interval}")
    return ", ".join(parts[:6])


def remarks(c: Comparison) -> list[str]:
    """Notes, what failed, and what was left out."""
    return [
        *c.notes,
        *(f"failed: {what}: {why}" for what, why in c.found.failed.items()),
        *(f"left out: {_here(path)}: {why}" for path, why in c.found.left_out.items()),
    ]


def _here(path: Path) -> Path:
    """The path, relative if it is inside the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def show(c: Comparison) -> None:
    """Print everything to the terminal, with the verdict last."""
    for heading, part in (
        ("Runs", rows(c)),
        ("Held out", held_out(c)),
        ("Failure modes", failure_modes(c)),
        ("Alarms", alarms(c)),
        ("Settings that differ", side_by_side(c)),
        ("Other runs", others(c)),
    ):
        if len(part) > 1:
            for table in rich(heading, part, console.width):
                console.print(table)
    for line in remarks(c):
        print_plain(line)
    if c.verdicts:
        print_plain("")
    for verdict in c.verdicts:
        print_plain(verdict.sentence)


def side_by_side(c: Comparison) -> list[list[str]]:
    """The settings that differ, a line each, with a column per run; for many runs, see `by_value`."""
    return settings(c) if len(c.groups) <= SIDE_BY_SIDE else by_value(c)


def by_value(c: Comparison) -> list[list[str]]:
    """The settings that differ, with the runs of each value, which is narrow enough for a terminal."""
    lines = [["setting", "value: runs"]]
    for key, row in c.settings.items():
        having: dict[str, list[str]] = {}
        for group, value in zip(c.groups, row, strict=True):
            having.setdefault(value or "(none)", []).append(group.label)
        lines.append([key, "\n".join(f"{value}: {', '.join(labels)}" for value, labels in having.items())])
    return lines if len(lines) > 1 else []


def rich(heading: str, part: list[list[str]], width: int) -> list[Table]:
    """One table; if `width` is too small, several below each other, each with the first column.

    Cells break between words, and never within a number.
    """
    # Without columns that are empty in every line.
    names, *others = [i for i in range(len(part[0])) if i == 0 or any(row[i] for row in part[1:])]
    needed = {i: _needed([row[i] for row in part], i == names) for i in (names, *others)}
    pieces: list[list[int]] = [[]]
    for i in others:
        # A border and a space on each side.
        if pieces[-1] and sum(needed[j] + 3 for j in (names, *pieces[-1], i)) + 1 > width:
            pieces.append([])
        pieces[-1].append(i)
    found = []
    for number_, piece in enumerate(pieces):
        table = Table(title=heading if number_ == 0 else None, title_justify="left")
        wide = _widths({i: (needed[i], _longest([row[i] for row in part])) for i in (names, *piece)}, width)
        for i in (names, *piece):
            justify: Any = "right" if _numeric([row[i] for row in part[1:]]) else "left"
            table.add_column(escape(part[0][i]), justify=justify, overflow="fold", width=wide[i])
        for row in part[1:]:
            if len(pieces) == 1 or any(row[i] for i in piece):
                table.add_row(*(escape(row[i]) for i in (names, *piece)))
        found.append(table)
    return found


def _widths(columns: dict[int, tuple[int, int]], width: int) -> dict[int, int]:
    """Column -> its width: what it needs, and an equal share of the rest, up to its longest line.

    Computed here because Rich ignores `min_width` when it narrows columns, and would cut the table at its right edge.
    """
    spare = max(width - 1 - sum(needed + 3 for needed, _ in columns.values()), 0)
    found = {}
    for left, (i, (needed, longest)) in enumerate(sorted(columns.items(), key=lambda one: one[1][1] - one[1][0])):
        more = min(max(longest - needed, 0), spare // (len(columns) - left))
        found[i], spare = needed + more, spare - more
    return found


def _longest(column: list[str]) -> int:
    return max((len(line) for cell in column for line in cell.splitlines()), default=1)


def _numeric(cells: list[str]) -> bool:
    return all(not cell or cell.lstrip("-")[:1].isdigit() for cell in cells)


def _needed(column: list[str], name: bool) -> int:
    """The least width of a column: its longest word, or its longest number with its unit or error."""
    head, *cells = column
    words = [word for cell in ([head] if _numeric(cells) and not name else column) for word in cell.split()]
    whole = cells if _numeric(cells) and not name else []
    return min(max(map(len, [*words, *whole]), default=1), LONGEST)


def as_csv(c: Comparison) -> str:
    """A line per group, with numbers in separate columns."""
    metrics = list(dict.fromkeys(["probe/kl", *c.rewards, *c.held_out, *c.modes]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [name for metric in metrics for name in (metric, f"{metric} error")]
    writer.writerow(["run", "method", "status", "seeds", "front", *names, "error is over", "ended in NaN"])
    for group in c.groups:
        means = [group.mean(metric) for metric in metrics]
        values = [v for m in means for v in (("", "") if m is None else (m.value, "" if m.error is None else m.error))]
        over = " ".join(dict.fromkeys(m.over for m in means if m and m.over))
        nan = " ".join(metric for metric, mean in zip(metrics, means, strict=True) if mean and mean.nan)
        front = any(c.compared[i] is group for i in c.front)
        plain = [group.label, group.method, group.status, " ".join(map(str, group.seeds)), front, *values, over, nan]
        writer.writerow([_inert(v) if isinstance(v, str) else v for v in plain])
    return out.getvalue()


def _inert(text: str) -> str:
    """`text` in a form that spreadsheets do not compute as a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def as_markdown(c: Comparison) -> str:
    parts = [
        _markdown(part)
        for part in (rows(c), held_out(c), failure_modes(c), alarms(c), settings(c), others(c))
        if len(part) > 1
    ]
    parts += ["\n".join(f"- {_cell(line)}" for line in remarks(c))] if remarks(c) else []
    parts += [_cell(verdict.sentence) for verdict in c.verdicts]
    return "\n\n".join(parts) + "\n"


def _markdown(part: list[list[str]]) -> str:
    lines = [part[0], ["---"] * len(part[0]), *part[1:]]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """`text` escaped for a cell of a Markdown table: no cell separator, line break or HTML."""
    for plain, safe in (("\\", "\\\\"), ("|", "\\|"), ("\n", " "), ("\r", " "), ("<", "&lt;")):
        text = text.replace(plain, safe)
    return text


def as_json(c: Comparison) -> str:
    return json.dumps(_finite(record(c)), indent=2, default=str) + "\n"


def _finite(value: Any) -> Any:
    """A value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def record(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain numbers and texts, for JSON."""
    metric, c = comparison.metric, comparison
    return {
        "metric": metric,
        "better": "lower" if c.minimise else "higher",
        "reference": c.reference or None,
        "start": c.start,
        "groups": [_record(c, group) for group in c.groups],
        "best_of_n": [vars(one) for one in c.best_of],
        "fits": {m: {who: {**vars(f), "peak": f.peak} for who, f in fits.items()} for m, fits in c.fits.items()},
        "settings": {key: dict(zip((g.label for g in c.groups), row, strict=True)) for key, row in c.settings.items()},
        "verdicts": [
            {
                "kl_budget": v.budget,
                "best": v.best.label,
                "next": v.next.label if v.next else None,
                "difference": v.difference,
                "interval": v.noise.interval,
                "over": v.noise.over or None,
                "spread": vars(v.noise.spread) if v.noise.spread else None,
                "ties": [c.label for c in v.ties],
                "sentence": v.sentence,
            }
            for v in c.verdicts
        ],
        "other_runs": [
            {"name": r.name, "job": r.job, "status": r.status, "metrics": r.record.get("metrics", {})} for r in c.others
        ],
        "pipelines": {str(path): pipeline for path, pipeline in c.found.pipelines.items()},
        "failed": c.found.failed,
        "left_out": {str(path): why for path, why in c.found.left_out.items()},
        "notes": c.notes,
    }


def _record(c: Comparison, group: Group) -> dict[str, Any]:
    metrics = list(dict.fromkeys(["probe/kl", *c.rewards, *c.held_out, *c.modes]))
    return {
        "label": group.label,
        "method": group.method,
        "status": group.status,
        "seeds": group.seeds,
        "runs": [str(run.path) for run in group.runs],
        "steps": [max(run.points, default=0) for run in group.runs],
        "on_front": any(c.compared[i] is group for i in c.front),
        "metrics": {
            m: {
                "mean": mean.value,
                "error": mean.error,
                "over": mean.over or None,
                "each": mean.each,
                "ended_in_nan": mean.nan,
            }
            for m in metrics
            if (mean := group.mean(m))
        },
        "alarms": group.alarms,
    }
