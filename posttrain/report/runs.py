"""Finding and reading the runs under given paths; nothing is written."""

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from posttrain.config import trainers
from posttrain.config.flat_settings import leaves
from posttrain.config.schema import OTHER_JOBS
from posttrain.config.suggestions import near_path
from posttrain.errors import PosttrainError, first_line
from posttrain.runs.directory import RunDirectory
from posttrain.runs.identity import NOT_IN_DIGEST
from posttrain.runs.metrics import by_step, final_metrics, read

# Levels of folders below a given path that are searched for runs; outputs/sweeps/DATE is three.
DEPTH = 3
# Held-out metrics that are shares of the rows, so that their standard error follows from the number of rows.
SHARES = ("eval_rewards/accuracies", "eval_accuracy")
SEEDS = ("trainer.args.seed", "trainer.args.data_seed", "sample.seed")


@dataclass(frozen=True)
class Run:
    """One run folder. `points` are the finite numbers of `metrics.jsonl` by step."""

    path: Path
    status: str
    record: dict[str, Any]
    settings: dict[str, Any]
    points: dict[int, dict[str, float]]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def job(self) -> str:
        return str(self.record.get("job", "train"))

    @property
    def kind(self) -> str:
        return str(self.record.get("trainer") or self.job)

    @property
    def rewarded(self) -> tuple[str, ...]:
        """The names of the rewards that it trains on, without those of weight 0, which are only measured."""
        kind = trainers.find(self.kind)
        # If the trainer's class is not on this machine, its settings decide.
        rewarded = kind is None or kind.takes_rewards
        names = {key.split(".")[1] for key in self.settings if key.startswith("reward.")} if rewarded else ()
        return tuple(sorted(name for name in names if self.settings.get(f"reward.{name}.weight", 1.0)))

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def seed(self) -> tuple[Any, ...]:
        """The values of all seeds in the settings, the run's own first."""
        return (self.record.get("seed"), *(self.settings.get(key) for key in SEEDS))

    @property
    def alarms(self) -> list[dict[str, Any]]:
        found = self.record.get("alarms")
        return [alarm for alarm in found if isinstance(alarm, dict)] if isinstance(found, list) else []

    @cached_property
    def samples(self) -> dict[int, list[dict[str, Any]]]:
        """The probe's completions by step."""
        steps: dict[int, list[dict[str, Any]]] = {}
        for row in read(self.path / "samples.jsonl"):
            if isinstance(row.get("step"), int):
                steps.setdefault(row["step"], []).append(row)
        return steps

    @cached_property
    def ended_in_nan(self) -> set[str]:
        """The metrics whose last logged value is NaN or infinite."""
        last = final_metrics(self.path / "metrics.jsonl")
        return {metric for metric, value in last.items() if not math.isfinite(value)}

    @property
    def held_out_rows(self) -> int:
        """The number of held-out rows it was measured on; 0 where its record does not say."""
        data = self.record.get("data")
        count = data.get("held_out_rows") if isinstance(data, dict) else None
        return count if isinstance(count, int) else 0

    def row_error(self, metric: str, value: float) -> float | None:
        """The standard error over held-out rows of a metric that is a share; `None` for others, and for 0 or 1."""
        known = metric in SHARES and self.held_out_rows and 0 < value < 1
        return math.sqrt(value * (1 - value) / self.held_out_rows) if known else None

    def last(self, *metrics: str) -> tuple[int, dict[str, float]] | None:
        """The last step at which all of `metrics` were logged, and its metrics."""
        steps = [step for step, point in self.points.items() if all(metric in point for metric in metrics)]
        return (steps[-1], self.points[steps[-1]]) if steps else None

    def by_prompt(self, metric: str, step: int) -> dict[str, float]:
        """Prompt -> the mean of `probe/rewards/NAME` or `probe/gold/NAME` over its samples at `step`."""
        kind, _, name = metric.removeprefix("probe/").partition("/")
        found: dict[str, list[float]] = {}
        for row in self.samples.get(step, []):
            value = row.get(f"{kind}/{name}", row.get(name))
            if isinstance(value, (int, float)) and math.isfinite(value):
                found.setdefault(str(row.get("prompt")), []).append(float(value))
        return {prompt: sum(values) / len(values) for prompt, values in found.items()}


@dataclass
class Found:
    """Everything found under the paths. `pipelines` have their status and that of their `stages`; `failed` are jobs of
    sweeps and stages that failed, with their error."""

    runs: dict[Path, Run] = field(default_factory=dict)
    pipelines: dict[Path, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[Path, str] = field(default_factory=dict)


def find(paths: list[Path]) -> Found:
    """All runs at and below `paths`; raises `PosttrainError` for paths that are no folders, and when there are none."""
    if wrong := [path for path in paths if not path.is_dir()]:
        raise PosttrainError("\n".join(f"PATH={path}: no such folder{near_path(str(path))}" for path in wrong))
    found = Found()
    for path in paths:
        _find_in(path, found, 0)
    if not found.runs:
        named = ", ".join(map(str, paths))
        why = "".join(f"\n{path}: {reason}" for path, reason in found.left_out.items() if path not in paths)
        raise PosttrainError(f"PATH={named}: no run in there; a run is a folder with a run.json{why}")
    return found


def _find_in(folder: Path, found: Found, depth: int) -> bool:
    """Add the runs in `folder` to `found`; returns whether there were any."""
    if (folder / "run.json").is_file():
        _add_run(folder, found)
    elif (folder / "pipeline.json").is_file():
        _pipeline(folder, found)
    elif (folder / "jobs.jsonl").is_file():
        _sweep(folder, found)
    elif (folder / "report.json").is_file():
        return True  # an earlier report
    else:
        return _find_below(folder, found, depth)
    return True


def _find_below(folder: Path, found: Found, depth: int) -> bool:
    try:
        inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != "wandb")
    except OSError as error:
        found.left_out[folder] = f"cannot be read: {error.strerror}"
        return False
    if depth < DEPTH:
        # A list, so that all are visited; a folder without runs is named once, and not every folder in it.
        inside = [_find_in(p, found, depth + 1) for p in inner]
        if any(inside):
            return True
    for path in inner:
        found.left_out.pop(path, None)
    found.left_out[folder] = "no run, pipeline or sweep"
    return False


def _add_run(folder: Path, found: Found) -> None:
    path = folder.resolve()
    if path in found.runs or path in found.left_out:
        return
    try:
        record = _json(path / "run.json")
        settings = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        if "status" not in record or not isinstance(settings, dict) or not _has_expected_types(record):
            raise ValueError("its files hold something else")
        points = by_step(path / "metrics.jsonl")
    except (OSError, ValueError, OverflowError, yaml.YAMLError) as error:
        found.left_out[path] = f"not a run of posttrain: {first_line(error)}"
        return
    unused = (*NOT_IN_DIGEST, *OTHER_JOBS.get(record.get("job", "train"), ()), "stages", "common")
    used = {key: value for key, value in settings.items() if key not in unused}
    flat = {key: value for key, value in leaves(used) if value is not None and value != {}}
    found.runs[path] = Run(path, _status(path, record), record, flat, points)


def _has_expected_types(record: dict[str, Any]) -> bool:
    """Whether the entries of `run.json` have the types that posttrain writes."""
    mappings = (record.get(key, {}) for key in ("model", "metrics", "intervals"))
    others = isinstance(record.get("parents", []), list) and isinstance(record.get("job", ""), str)
    return others and all(isinstance(value, dict) for value in mappings)


def _status(path: Path, record: dict[str, Any]) -> str:
    """finished; running (a process has claimed it); or stopped (no process has, as after a crash or a kill)."""
    if record["status"] != "running":
        return str(record["status"])
    try:
        # Only if there is a lock file, since asking would create one.
        return "running" if (path / ".lock").is_file() and RunDirectory(path).claimed_elsewhere() else "stopped"
    except OSError:  # it belongs to another user, or the disk is read-only
        return "unfinished"


def _pipeline(folder: Path, found: Found) -> None:
    try:
        record = _json(folder / "pipeline.json")
        stages = {name: stage for name, stage in dict(record.get("stages", {})).items() if isinstance(stage, dict)}
    except (OSError, ValueError, TypeError) as error:
        found.left_out[folder] = f"not a pipeline of posttrain: {error}"
        return
    status = _status(folder, {"status": "stopped", **record})
    found.pipelines[folder.resolve()] = {"status": status, "stages": {n: s.get("status") for n, s in stages.items()}}
    for name, stage in stages.items():
        if stage.get("status") == "failed":
            found.failed[f"{folder.name}: stage {name}"] = str(record.get("error") or "see its log")
        if stage.get("run"):
            _recorded_path(Path(str(stage["run"])), folder.parent, found)


def _sweep(folder: Path, found: Found) -> None:
    """Add the runs of a sweep, which are in its output_dir, two levels above `folder`."""
    for row in read(folder / "jobs.jsonl"):
        if row.get("status") == "failed":
            found.failed[str(row.get("command"))] = str(row.get("error"))
        elif row.get("run"):
            _recorded_path(Path(str(row["run"])), folder.parent.parent, found)
    commands = {row.get("command") for row in read(folder / "jobs.jsonl") if row.get("status") == "failed"}
    for record in folder.parent.parent.glob("*/run.json") if commands else []:
        try:
            if _json(record).get("command") in commands:
                _add_run(record.parent, found)
        except (OSError, ValueError):
            continue


def _recorded_path(path: Path, beside: Path, found: Found) -> None:
    """Add a recorded run, at its recorded path or, if everything was moved, at its new place."""
    there = next((p for p in (beside / path.name, path) if (p / "run.json").is_file()), None)
    if there:
        _add_run(there, found)
    else:
        found.left_out[path] = "named by a pipeline or sweep, and not there"


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not an object")
    return content
