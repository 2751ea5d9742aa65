"""The value of `objective` in a finished run."""

from collections.abc import Callable
from typing import Any

import yaml

from posttrain.config.objective import Objective, lower_is_better, parse
from posttrain.errors import PosttrainError
from posttrain.runs.directory import RunDirectory
from posttrain.runs.metrics import by_step


def from_metrics(objective: Any, find: Callable[[Objective], float]) -> float | tuple[float, ...] | None:
    """The return value for Hydra's sweeper: a number, or one for each objective of a list."""
    found = tuple(find(one) for one in parse(objective))
    return found if isinstance(objective, list) else next(iter(found), None)


def of_run(objective: Objective, directory: RunDirectory, who: str = "") -> float:
    """The objective's value in a run; raises `PosttrainError` with the measured metrics where it has none."""
    known = (directory.record() or {}).get("metrics", {})
    if objective.metric not in known:
        missing = f"{who} did not measure it" if who else "not measured"
        raise PosttrainError(
            f"objective={objective.text}: {missing}; there are {', '.join(sorted(known)) or 'no metrics'}"
        )
    if objective.budget is None:
        return known[objective.metric]
    values = [
        point[objective.metric]
        for point in by_step(directory.metrics).values()
        if objective.metric in point and point.get("probe/kl", float("inf")) <= objective.budget
    ]
    if not values:
        raise PosttrainError(
            f"objective={objective.text}: never logged together with a probe/kl of at most {objective.budget:g}; "
            "set probe.during=true for points between start and end"
        )
    return min(values) if lower_is_better(objective.metric) or _is_penalty(objective.metric, directory) else max(values)


def _is_penalty(metric: str, directory: RunDirectory) -> bool:
    """Whether it is a reward to which the run's config gives a negative weight."""
    path = directory.path / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    probe, (_, _, name) = config.get("probe", {}), metric.removeprefix("probe/").partition("/")
    places = [probe.get("gold")] if metric.startswith("probe/gold/") else [probe.get("rewards"), config.get("reward")]
    entry: dict[str, Any] = next((place[name] for place in places if place and name in place), {})
    return float(entry.get("weight", 1.0)) < 0
