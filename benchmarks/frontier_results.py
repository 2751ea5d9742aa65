"""What the study found, as Markdown: on what, how good the judges are, each method's reward and KL, what it took."""

import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frontier_runner import Ended

from posttrain.report.baseline import baseline
from posttrain.report.runs import find
from posttrain.runs.directory import RunDirectory
from posttrain.runs.metrics import by_step

# The reward that is read off, which ppo_gold alone trains on, and the KL it is read against.
GOLD, KL = ("probe/gold/positive", "probe/rewards/positive"), "probe/kl"


def results(
    finished: Mapping[str, RunDirectory],
    expected: Mapping[str, float],
    ended: Mapping[str, Ended],
    size: str,
) -> str:
    """A table of the judges, and one of the methods, over seeds."""
    from posttrain.rewards import reviews

    said = reviews.accuracy()
    records = {name: directory.record() or {} for name, directory in finished.items()}
    lines = [f"`python benchmarks/frontier.py --size {size}`, {time.strftime('%Y-%m-%d')}: {_machine()}.", ""]
    lines += ["| judge | trained on | right on held-out |", "|---|---|---|"]
    lines.append(
        f"| gold | {said['trained_on']:.0f} labelled reviews | {said['review']:.3f} of {said['reviews']:.0f} reviews, "
        f"{said['opening']:.3f} of their openings |"
    )
    for name in ("reward", "reward_few"):
        if record := records.get(name):
            right, rows = record["metrics"].get("eval_accuracy", float("nan")), record["data"]
            lines.append(f"| {name} | {rows['train_rows']} pairs | {right:.3f} of {rows['held_out_rows']} pairs |")
    lines += ["", "| runs | seeds | KL (nats) | gold reward | seconds a run (expected) |", "|---|---|---|---|---|"]
    points = _points(records, list(expected))
    starts = [gold for names in points.values() for n in names if (gold := _start(finished[n])) is not None]
    lines.append(f"| sft, the start of all | | 0 | {_spread(starts[:1])} | |")
    for point, names in points.items():
        kls = [records[n]["metrics"][KL] for n in names]
        golds = _golds(names, records)
        took = statistics.mean(records[n]["seconds"] for n in names)
        guess = statistics.mean(expected[n] for n in names)
        lines.append(f"| {point} | {len(names)} | {_spread(kls)} | {_spread(golds)} | {took:.0f} ({guess:.0f}) |")
    lines += [line for name in ("best_of_n", "best_of_n_few") if name in finished for line in _best(finished[name])]
    lines += ["", "± is the standard deviation between seeds; of best of n the standard error over prompts."]
    if "held_out" in finished:
        lines += _pairs({point: _golds(names, records) for point, names in points.items()}, finished["held_out"])
    lost = [name for name, end in ended.items() if name not in finished]
    return "\n".join([*lines, *([f"\nNot there: {', '.join(lost)}."] if lost else []), ""])


def _points(records: Mapping[str, Mapping[str, Any]], order: list[str]) -> dict[str, list[str]]:
    """The names of probed runs, by what they are called without the seed, in the `order` of the stages."""
    points: dict[str, list[str]] = {}
    for name in order:
        if KL in records.get(name, {}).get("metrics", {}):
            points.setdefault(name.partition("_seed")[0], []).append(name)
    return points


def _golds(names: Sequence[str], records: Mapping[str, Mapping[str, Any]]) -> list[float]:
    """The gold reward of each run after training."""
    measured = (records[name]["metrics"].get(metric) for name in names for metric in GOLD)
    return [value for value in measured if value is not None]


def _pairs(golds: Mapping[str, Sequence[float]], held_out: RunDirectory) -> list[str]:
    """Each two methods: the difference in gold, its interval, and what it says.

    The intervals are Tukey's for all pairs together, from the spread between seeds. Two methods are equal where the
    interval lies within a tenth of gold's range: from the 5th to the 95th percentile of the start's own completions.
    """
    from numpy import percentile
    from scipy.stats import tukey_hsd

    compared = {name: values for name, values in golds.items() if len(values) > 1 and name != "overoptimize"}
    if len(compared) < 2:
        return []
    lines_of = (held_out.path / "rewards.jsonl").read_text(encoding="utf-8").splitlines()
    drawn = [json.loads(line)["rewards"]["positive"] for line in lines_of]
    low, high = percentile([value for batch in drawn for value in batch], (5, 95))
    tenth = (high - low) / 10
    found = tukey_hsd(*compared.values())
    interval = found.confidence_interval(0.95)
    lines = ["", "| two methods | difference in gold, 95% interval | |", "|---|---|---|"]
    for (i, first), (j, second) in itertools.combinations(enumerate(compared), 2):
        least, most = interval.low[i, j], interval.high[i, j]
        said = "apart" if least > 0 or most < 0 else "equal" if max(-least, most) < tenth else "open"
        lines.append(f"| {first}, {second} | {found.statistic[i, j]:.2f} [{least:.2f}, {most:.2f}] | {said} |")
    return [*lines, "", f"Equal: within {tenth:.2f}, a tenth of the range from {low:.2f} to {high:.2f}."]


def _start(directory: RunDirectory) -> float | None:
    """The gold reward before training, where it was measured: of the same samples of the same model in all runs."""
    first = by_step(directory.metrics).get(0, {})
    return next((first[metric] for metric in GOLD if metric in first), None)


def _best(directory: RunDirectory) -> list[str]:
    """A row for each n above 1."""
    made = baseline(next(iter(find([directory.path]).runs.values())), GOLD[:1])
    if isinstance(made, str):
        return [f"| {directory.path.name}: {made} | | | | |"]
    name = "reward_few" if "few" in directory.path.name else "reward"
    rows = zip(made.ns, made.kl, made.rewards[GOLD[0]], strict=True)
    return [
        f"| best of {n} by {name} | | {kl:.2f} | {mean:.2f}" + (f" ± {error:.2f}" if error is not None else "") + " | |"
        for n, kl, (mean, error) in rows
        if n > 1
    ]


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "not measured"
    return f"{statistics.mean(known):.2f}" + (f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else "")


def _machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{os.cpu_count()} cores, {model}"
