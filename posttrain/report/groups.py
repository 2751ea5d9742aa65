"""Groups of runs that differ only in seeds, and their labels."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from posttrain.probe.intervals import standard_error
from posttrain.report.runs import SEEDS, Run
from posttrain.runs.metrics import format_number as number
from posttrain.runs.metrics import stderr_metric

# The order of methods in tables, legends and colours.
METHODS = ("sft", "distillation", "dpo", "kto", "cpo", "orpo", "ppo", "grpo", "rloo", "reward")
# Most settings in a label; runs that differ in more settings are labelled by their names.
MAX_LABEL_SETTINGS = 3
# Settings that change neither training nor results, only how often and where a run measures, logs and saves.
IGNORED_SETTINGS = ("probe.start", "probe.every", "probe.during", "probe.batch_size", "probe.shift_prompts")
IGNORED_ARGS = re.compile(
    r"trainer\.args\.(eval_|save_|logging_|per_device_eval_|dataloader_(num_|pin_|persistent_|prefetch_)|log_"
    r"|report_to$|run_name$|output_dir$|disable_tqdm$|num_completions_to_print$)"
)
# The end of a run's name that distinguishes the seeds of a group.
SEED = re.compile(r"[_-]seed[_-]?\d*$")


@dataclass(frozen=True)
class Mean:
    """A number over seeds: `error` is the standard deviation between seeds, or with one seed the standard error over
    prompts, or over held-out rows; `over` says which of them, or "" where neither is known. `nan`: after it came NaN or
    infinity, so that it is not the value of the final model."""

    value: float
    error: float | None
    over: str
    each: tuple[float, ...]
    nan: bool = False

    @property
    def then(self) -> str:
        """What came after the value, in words."""
        return ", then NaN" if self.nan else ""

    def __str__(self) -> str:
        # Both with the same number of decimals.
        places = len(number(self.value).partition(".")[2])
        return number(self.value) + (f" ± {self.error:.{places}f}" if self.error is not None else "") + self.then


@dataclass(eq=False)
class Group:
    """Runs of the same settings, one per seed. Results come from the finished runs, or from all if none is finished.

    `method` is the trainer and, where runs of one trainer have different rewards, the rewards: PPO on a learned reward
    and PPO on gold are two methods. `variant` numbers the methods of one trainer.
    """

    method: str
    label: str
    key: str
    runs: list[Run]
    variant: int = 0

    @property
    def kind(self) -> str:
        return self.runs[0].kind

    @property
    def finished(self) -> bool:
        return any(run.finished for run in self.runs)

    @property
    def counted(self) -> list[Run]:
        return [run for run in self.runs if run.finished] or self.runs

    @property
    def status(self) -> str:
        states = [run.status for run in self.runs]
        return " ".join(f"{states.count(s)} {s}" if len(states) > 1 else s for s in dict.fromkeys(states))

    @property
    def seeds(self) -> list[Any]:
        return [run.seed[0] for run in self.counted]

    @property
    def alarms(self) -> list[dict[str, Any]]:
        return [{"run": run.name, **alarm} for run in self.runs for alarm in run.alarms]

    def mean(self, metric: str, start: bool = False) -> Mean | None:
        """The mean over seeds of the last value of `metric` (or of the first); `None` where it was not logged."""
        values, errors = [], []
        for run in self.counted:
            found = (0, run.points[0]) if start and metric in run.points.get(0, {}) else run.last(metric)
            if found is None or (start and found[0] != 0):
                continue
            step, point = found
            values.append(point[metric])
            if metric.startswith("eval_"):
                errors.append(run.row_error(metric, point[metric]))
                continue
            logged = point.get(stderr_metric(metric))
            errors.append(standard_error([*run.by_prompt(metric, step).values()]) if logged is None else logged)
        if not values:
            return None
        nan = not start and any(metric in run.ended_in_nan for run in self.counted)
        if len(values) > 1:
            return Mean(fmean(values), stdev(values), "seeds", tuple(values), nan)
        over = "rows" if metric.startswith("eval_") else "prompts"
        return Mean(values[0], errors[0], over if errors[0] is not None else "", tuple(values), nan)

    def path(self, *metrics: str) -> list[dict[str, float]]:
        """The mean over seeds of `metrics` at each step at which all of them were logged."""
        steps: dict[int, list[dict[str, float]]] = {}
        for run in self.counted:
            for step, point in run.points.items():
                if all(metric in point for metric in metrics):
                    steps.setdefault(step, []).append(point)
        return [{"step": s, **{m: fmean(p[m] for p in steps[s]) for m in metrics}} for s in sorted(steps)]

    def by_prompt(self, metric: str, start: bool = False) -> dict[str, float]:
        """Prompt -> mean over seeds, at the end or before training, for prompts that all seeds have."""
        each = []
        for run in self.counted:
            if (last := run.last(metric)) and (start is False or metric in run.points.get(0, {})):
                each.append(run.by_prompt(metric, 0 if start else last[0]))
        shared = set.intersection(*map(set, each)) if each else set()
        return {prompt: fmean(one[prompt] for one in each) for prompt in (each[0] if each else {}) if prompt in shared}


def pool(runs: Sequence[Run], names: dict[str, Run]) -> tuple[list[Group], dict[Path, str]]:
    """Groups by method and label; and each run that repeats the settings and seeds of another -> that run's name.

    A setting that names a run in `names` counts by that run's settings, so that seeds of a pipeline are pooled.
    """
    rewarded = {run.kind: _variants(runs, run.kind) for run in runs}
    groups: dict[tuple[str, str], Group] = {}
    repeated: dict[Path, str] = {}
    # Of two equal runs, the one that was measured more often is kept.
    for run in sorted(runs, key=lambda run: (not run.finished, -len(run.points), run.name)):
        key = identity(run, names)
        several = len(rewarded[run.kind]) > 1
        method = f"{run.kind} on {' + '.join(run.rewarded) or 'none'}" if several else run.kind
        new = Group(method, "", key, [], rewarded[run.kind].index(run.rewarded))
        group = groups.setdefault((run.kind, key), new)
        same = next(
            (other for other in group.runs if other.seed == run.seed and _lineage(other) == _lineage(run)), None
        )
        # If the seed changes nothing (KTO reads its rows in order), a second run is no second measurement.
        made = run.record.get("content")
        twin = next((other for other in group.runs if made and other.record.get("content") == made), None)
        if same:
            repeated[run.path] = f"the same settings and seed as {same.name}"
        elif twin:
            repeated[run.path] = f"made the very model of {twin.name}: its seed changed nothing"
        else:
            group.runs.append(run)
    for group in groups.values():
        group.runs.sort(key=lambda run: (not run.finished, *_order(run.seed[0])))
    result = sorted(groups.values(), key=lambda g: (_rank(g.method), g.method))
    _label(result, names)
    result.sort(key=lambda g: (_rank(g.method), g.method, _natural(g)))
    return result, repeated


def _variants(runs: Sequence[Run], kind: str) -> list[tuple[str, ...]]:
    """The different sets of rewards of a trainer's runs, the most frequent first."""
    counts = Counter(run.rewarded for run in runs if run.kind == kind)
    return sorted(counts, key=lambda names: (-counts[names], names))


def identity(run: Run, names: dict[str, Run], seen: tuple[str, ...] = ()) -> str:
    """The settings that distinguish groups, as text."""
    return json.dumps(_counting(run, names, seen), sort_keys=True, default=str)


def _counting(run: Run, names: dict[str, Run], seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings that distinguish groups: all but seeds, names and paths; a run counts by its settings or content."""
    contents = {str(p.get("path")): p.get("content") for p in _parents(run)}
    # If the best checkpoint becomes the model, the intervals of evaluations and checkpoints change the result.
    chosen = run.settings.get("trainer.args.load_best_model_at_end")

    def counted(value: Any) -> Any:
        if isinstance(value, list):
            return [counted(each) for each in value]
        if not isinstance(value, str):
            return value
        parent = names.get(Path(value).name)
        if parent and parent.name not in (*seen, run.name):
            return f"{parent.kind}: {identity(parent, names, (*seen, run.name))}"
        return contents.get(value) or value

    beside = {key for key in run.settings if key in IGNORED_SETTINGS or (not chosen and IGNORED_ARGS.match(key))}
    return {key: counted(value) for key, value in run.settings.items() if key not in (*SEEDS, *beside)}


def _parents(run: Run) -> list[dict[str, Any]]:
    return [parent for parent in run.record.get("parents", []) if isinstance(parent, dict)]


def _lineage(run: Run) -> list[Any]:
    return sorted(str(parent.get("content")) for parent in _parents(run))


def differing(groups: Sequence[Group], names: dict[str, Run]) -> dict[str, list[str]]:
    """The settings that differ between `groups`, with the value in each; "" where a group does not have it.

    Seeds of the same parent count as one value, although their folders have different names.
    """
    first = [group.runs[0] for group in groups]
    counting = [_counting(run, names) for run in first]
    rows: dict[str, list[str]] = {}
    for key in sorted({key for settings in counting for key in settings} - {"trainer.kind"}):
        if len({json.dumps(settings.get(key), default=str) for settings in counting}) > 1:
            rows[key] = [_plain(run.settings.get(key)) for run in first]
    return rows


def _label(groups: list[Group], names: dict[str, Run]) -> None:
    """Set each group's label: `method` and the settings that differ within it, or its name if these are many."""
    for method in {group.method for group in groups}:
        own = [group for group in groups if group.method == method]
        rows = differing(own, names)
        for i, group in enumerate(own):
            parts = [f"{_short(key, rows)}={values[i]}" for key, values in rows.items() if values[i]]
            own_name = [] if (called := _name(group)) == method else [called]
            group.label = " ".join([method, *(parts if len(rows) <= MAX_LABEL_SETTINGS else own_name)])
    counts: dict[str, int] = {}
    for group in groups:
        counts[group.label] = counts.get(group.label, 0) + 1
    for group in groups:
        if counts[group.label] > 1:
            name = group.runs[0].name
            group.label = name if name.startswith(group.method) else f"{group.method} {name}"


def _name(group: Group) -> str:
    """The common beginning of the runs' names, without their digests and seeds."""
    names = [run.name.rpartition("-")[0] or run.name for run in group.runs]
    same = [letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))]
    return SEED.sub("", "".join(same)).rstrip("_-") or names[0]


def _short(key: str, rows: dict[str, Any]) -> str:
    """The last part of a setting's name, with the part before it if needed to be unique."""
    last = key.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == last for other in rows) == 1
    return last if alone else ".".join(key.split(".")[-2:])


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return Path(value).name if "/" in value else value
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rank(method: str) -> int:
    kind = method.partition(" ")[0]
    return METHODS.index(kind) if kind in METHODS else len(METHODS)


def _natural(group: Group) -> tuple[Any, ...]:
    """A sort key that orders numbers in labels by value: 0.05 before 0.1 before 0.5."""
    parts = group.label.replace("=", " ").split()
    return tuple((0, float(p), "") if p.replace(".", "", 1).isdigit() else (1, 0.0, p) for p in parts)


def _order(seed: Any) -> tuple[bool, float, str]:
    return (True, 0.0, str(seed)) if not isinstance(seed, (int, float)) else (False, float(seed), "")
