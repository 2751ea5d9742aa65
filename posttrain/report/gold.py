"""Runs that train on a reward that other runs use as gold."""

from dataclasses import replace

from posttrain.report.baseline import Baseline
from posttrain.report.groups import Group
from posttrain.report.runs import Run

AS_GOLD = {"rewards": "gold", "rewards_stderr": "gold_stderr"}


def on_gold(runs: list[Run]) -> list[Run]:
    """`runs`, where a training reward counts as gold if other runs have it as gold, by name and function or model."""
    golds = {name: entry for run in runs for name, entry in _entries(run, "probe.gold").items()}
    return [_renamed(run, [n for n, e in _entries(run, "reward").items() if golds.get(n) == e]) for run in runs]


def trained_on(group: Group, metric: str) -> bool:
    """Whether `metric` is a gold reward that the runs of `group` were trained on."""
    kind, _, reward = metric.removeprefix("probe/").partition("/")
    return kind == "gold" and reward in group.runs[0].rewarded


def chosen_on_gold(baseline: Baseline, metric: str) -> bool:
    """Whether `metric` is a gold reward, and the completions of `baseline` were chosen by it."""
    kind, _, reward = metric.removeprefix("probe/").partition("/")
    return kind == "gold" and reward in {term.rpartition(" ")[2] for term in baseline.chosen_by.split(" + ")}


def _renamed(run: Run, names: list[str]) -> Run:
    axis = {f"probe/{kind}/{n}": f"probe/{to}/{n}" for n in names for kind, to in AS_GOLD.items()}
    points = {step: {axis.get(m, m): value for m, value in point.items()} for step, point in run.points.items()}
    return replace(run, points=points) if axis else run


def _entries(run: Run, place: str) -> dict[str, tuple[object, object]]:
    """Name -> (function, model) of each reward in the settings at `place`."""
    found: dict[str, tuple[object, object]] = {}
    for key in run.settings:
        if key.startswith(f"{place}."):
            name = key.removeprefix(f"{place}.").partition(".")[0]
            found[name] = (run.settings.get(f"{place}.{name}.function"), run.settings.get(f"{place}.{name}.model"))
    return found
