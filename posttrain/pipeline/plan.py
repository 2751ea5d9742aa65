"""The state of each stage (finished, interrupted, new, changed), known without running it."""

import json
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from posttrain import __version__
from posttrain.config import combinations, parse, paths_and_secrets
from posttrain.config.flat_settings import flatten
from posttrain.config.schema import Origin, Run, TrackingConfig
from posttrain.config.suggestions import did_you_mean
from posttrain.errors import PosttrainError
from posttrain.pipeline import overrides
from posttrain.pipeline.stages import Stage, Stages, read
from posttrain.runs import stored_config
from posttrain.runs.directory import RunDirectory
from posttrain.runs.identity import NOT_IN_DIGEST

UNKNOWN_HASH = "????????"  # the hash of a run whose parents are not there yet
UNSET = object()


@dataclass(frozen=True)
class Step:
    """What will be done for one stage, and why. `state` is reuse, continue, run or skip.

    `directory` is `None` while it depends on an unfinished parent. `parents` are the stages whose runs the stage gets,
    with groups of rounds resolved.
    """

    stage: Stage
    run: Run
    overrides: tuple[str, ...]
    directory: RunDirectory | None
    state: str
    why: str
    parents: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command of the stage, quoted for a shell."""
        return shlex.join([*((*self.stage.launch, "-m") if self.stage.launch else ()), "posttrain", *self.overrides])


class Progress:
    """The progress of a pipeline: `finished` maps stages to their finished run directories."""

    def __init__(self, stages: Stages, run: Run):
        self.stages = stages
        self.output_dir = run.output_dir
        self.shared = shared(run)
        self.finished: dict[str, RunDirectory] = {}
        self._places: dict[str, str] = {}

    def steps(self) -> Iterator[Step]:
        """All stages in order; finished stages are added to `finished`, so that their children can be resolved."""
        for stage in self.stages.stages.values():
            step = self.step_for(stage)
            if step.state == "reuse" and step.directory:
                self.finished[stage.name] = step.directory
            yield step

    def step_for(self, stage: Stage) -> Step:
        """The state of `stage`, given what is finished."""
        parents = {key: self.resolve(name) for key, name in stage.parents.items()}
        places = {key: self._places[parent] for key, parent in parents.items()}
        args = tuple(arguments(stage, self.output_dir, self.shared, places))
        run = run_of(stage, self.output_dir, self.shared, places)
        waits = [name for name in dict.fromkeys(parents.values()) if name not in self.finished]
        directory = None if waits else RunDirectory.of(run, Origin(stage.recipe, args, None))
        folder = directory.name if directory else f"{run.name}-{UNKNOWN_HASH}"
        self._places[stage.name] = str(Path(run.output_dir) / folder)
        step = Step(stage, run, args, directory, "run", "new", tuple(dict.fromkeys(parents.values())))
        state, why = self._state(step, waits)
        return replace(step, state=state, why=why)

    def _state(self, step: Step, waits: list[str]) -> tuple[str, str]:
        stage, directory = step.stage, step.directory
        if stage.rounds and (ended := self.ended(stage.rounds)) and ended[0] < stage.number:
            return "skip", ended[1]
        if directory and directory.finished():
            return "reuse", "finished"
        if directory and directory.record():
            if directory.claimed_elsewhere():
                return "continue", "another process is running it"
            checkpoint = directory.last_checkpoint()
            return "continue", f"{checkpoint.name if checkpoint else 'the start'} of an interrupted run"
        before = newest(Path(step.run.output_dir), step.run.name or stage.name)
        if before is None:
            return "run", "new"
        changes = differences(before.path, step.run, without=stage.parents)
        if changes:
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            return "run", f"changed: {', '.join(changes[:3])}{more}"
        version = ((before.record() or {}).get("versions") or {}).get("posttrain", __version__)
        if version != __version__:
            return "run", f"changed: posttrain {version} -> {__version__}"
        if waits:
            return "run", f"its parent {waits[0]} runs again"
        return "run", f"its parent {' or '.join(step.parents)} changed" if step.parents else "changed: a file it reads"

    def metrics(self, name: str) -> dict[str, float] | None:
        """The final metrics of a finished stage."""
        return (self.finished[name].record() or {}).get("metrics", {}) if name in self.finished else None

    def resolve(self, name: str) -> str:
        """The stage that `name` stands for: itself, or the result of a group of rounds, as far as it is known."""
        group = self.stages.rounds.get(name)
        if group is None:
            return name
        ended = self.ended(name)
        if ended is None:
            return group.results[-1]
        return group.results[ended[0] - 2] if ended[0] > 1 else self.resolve(group.start or group.results[0])

    def ended(self, name: str) -> tuple[int, str] | None:
        """The last round of the group `name`, and why it is the last; `None` while the metric rises."""
        group = self.stages.rounds[name]
        if group.metric is None:
            return None
        start = self.resolve(group.start) if group.start else None
        before = (self.metrics(start) or {}).get(group.metric) if start else None
        for number, measured in enumerate(group.measured, start=1):
            values = self.metrics(measured)
            round_ = [s.name for s in self.stages.stages.values() if (s.rounds, s.number) == (name, number)]
            if values is None or not all(stage in self.finished for stage in round_):
                return None
            if group.metric not in values:
                raise PosttrainError(
                    f"stages.{name}.stop={group.metric}: {measured} did not measure it; there are "
                    f"{', '.join(sorted(values))}"
                )
            value = values[group.metric]
            if before is not None and not value > before:
                than = group.results[number - 2] if number > 1 else start
                return number, f"{measured} has {group.metric} {value:.4g}, not above {before:.4g} of {than}"
            before = value
        return None


def shared(run: Run) -> dict[str, Any]:
    """The pipeline's own `tracking`, which all stages have unless they choose another."""
    default = asdict(TrackingConfig())
    return {"tracking": {k: v for k, v in asdict(run.tracking).items() if v != default[k]}}


def arguments(stage: Stage, output_dir: str, below: Mapping[str, Any], parents: Mapping[str, str]) -> list[str]:
    """The overrides of a stage's command; `parents` maps config keys to run directories."""
    words = [f"+recipe={stage.recipe}"] if stage.recipe else []
    own = {"name": stage.name, **({"output_dir": output_dir} if output_dir != "outputs" else {})}
    folders = parse.own_folders(HydraConfig.get()) if HydraConfig.initialized() else []
    return words + overrides.to_overrides(flatten(own, below, stage.settings, parents)) + folders


def run_of(stage: Stage, output_dir: str, below: Mapping[str, Any], parents: Mapping[str, str]) -> Run:
    """The `Run` of that command; composed once for a stage, whatever its parents' directories turn out to be."""
    unknown = {key: str(Path(output_dir) / f"{name}-{UNKNOWN_HASH}") for key, name in stage.parents.items()}
    run = overrides.run_of(tuple(arguments(stage, output_dir, below, unknown)))
    names = {unknown[key]: place for key, place in parents.items() if unknown[key] != place}
    return _replaced(run, names) if names else run


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _replaced(getattr(value, f.name), names) for f in fields(value)})
    if isinstance(value, dict):
        return {key: _replaced(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, names) for inner in value]
    for old, new in names.items() if isinstance(value, str) else ():
        value = value.replace(old, new)
    return value


def newest(output_dir: Path, name: str) -> RunDirectory | None:
    """The most recent run directory with that name."""
    found = [p for p in output_dir.glob(f"{name}-{'[0-9a-f]' * 8}") if (p / "config.yaml").is_file()]
    return RunDirectory(max(found, key=lambda p: (p / "config.yaml").stat().st_mtime)) if found else None


def differences(folder: Path, run: Run, without: Mapping[str, str]) -> list[str]:
    """The settings in which `run` differs from the run in `folder`, as `key old -> new`."""
    old = flatten(OmegaConf.to_container(stored_config.load(folder)))  # type: ignore[arg-type]
    new = flatten(asdict(run))
    keys = [k for k in dict.fromkeys([*new, *old]) if k.partition(".")[0] not in NOT_IN_DIGEST and k not in without]
    pairs = [(key, old.get(key, UNSET), new.get(key, UNSET)) for key in keys]
    return [f"{key} {_figure(a)} -> {_figure(b)}" for key, a, b in pairs if a != b and {} not in (a, b)]


def _figure(value: Any) -> str:
    if value is UNSET:
        return "unset"
    return f"{value:g}" if isinstance(value, float) else str(value)


def check(run: Run, check_stage: Callable[[Run], None]) -> Stages:
    """Raise `PosttrainError` with all that is wrong in any stage, each checked by `check_stage`.

    Stages that get the runs of others are checked with placeholder runs.
    """
    from posttrain.config import objective

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise PosttrainError("job=pipeline: starts its own processes; call it with python, and set stages.NAME.launch")
    stages, errors = read(run.stages, run.common), objective.check(run.objective) + _unread(run)
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as folder:
        stand_ins: dict[str, str] = {}
        for stage in stages.stages.values():
            parents = {key: stand_ins.get(_first(stages, name), folder) for key, name in stage.parents.items()}
            wrong = overrides.check(stage.settings, stage.recipe)
            try:
                if not wrong:
                    own = run_of(stage, run.output_dir, shared(run), parents)
                    if own.job == "pipeline":
                        raise PosttrainError(f"recipe={stage.recipe}: a pipeline, and a stage is one run")
                    runs[stage.name] = own
                    stand_ins[stage.name] = _placeholder_run(Path(folder) / stage.name, own)
                    check_stage(own)
            except PosttrainError as error:
                wrong = str(error).replace(f"{folder}{os.sep}", "").splitlines()
                if stage.launch:  # which starts several
                    wrong = [line for line in wrong if combinations.ONE_PROCESS not in line]
            if stage.recipe is None and any("required, and not set" in line for line in wrong):
                others = [name for name in stages.stages if name != stage.name]
                if hint := did_you_mean(stage.name, others):
                    errors.append(f"{stage.path}: a stage without a recipe; {hint}")
            errors += [f"{stage.path}.{line}" for line in wrong]
    for one in objective.parse(run.objective) if not errors else []:
        name, metric = of_stage(stages, one.metric)
        own = runs[stages.rounds[name].results[-1] if name in stages.rounds else name]
        errors += _unmeasured(own, one.text.replace(one.metric, metric, 1), f"objective={one.text}")
    for stage in stages.stages.values() if not errors else []:
        for gate in stage.gates:
            errors += _unmeasured(runs[stage.name], gate.metric, f"{stage.path}.gate={gate}")
    for name, group in stages.rounds.items() if not errors else []:
        if group.metric is not None:
            errors += _unmeasured(runs[group.measured[0]], group.metric, f"stages.{name}.stop={group.metric}")
    if errors:
        raise PosttrainError("\n".join(dict.fromkeys(errors)))
    return stages


def _unmeasured(own: Run, metric: str, where: str) -> list[str]:
    """Errors for a metric that the stage's run will not measure; those of job=doctor depend on the data."""
    from posttrain.config import objective

    said = objective.unmeasured(replace(own, objective=metric)) if own.job != "doctor" else []
    return [f"{where}: {line.partition(': ')[2]}" for line in said if line.startswith("objective")]


def errors(run: Run, check_stage: Callable[[Run], None]) -> list[str]:
    """Everything wrong with the pipeline itself and with its stages, each checked by `check_stage`."""
    found = list(dict.fromkeys(paths_and_secrets.check(run) + paths_and_secrets.secrets(asdict(run))))
    try:
        check(run, check_stage)
    except PosttrainError as error:
        # Errors in settings that stages inherit are reported once, for the pipeline.
        own = tuple(f".{line}" for line in found)
        lines = str(error).splitlines()
        found += [line for line in lines if line not in found and not line.endswith(own or ("\n",))]
    return found


def of_stage(stages: Stages, metric: str) -> tuple[str, str]:
    """Stage (or group of rounds) and metric of `STAGE.METRIC`; of `METRIC` alone, the last stage."""
    name, dot, rest = metric.partition(".")
    if dot and name in {*stages.stages, *stages.rounds}:
        return name, rest
    last = list(stages.stages.values())[-1]
    return last.rounds or last.name, metric


def _unread(run: Run) -> list[str]:
    """Errors for settings outside the stages that no stage inherits."""
    given, plain = (flatten(asdict(one)) for one in (run, overrides.run_of(("job=pipeline",))))
    own = ("trainer", "model", "peft", "data", "reward", "probe", "alarms", "sample", "evaluate")
    changed = [key for key, value in given.items() if key.partition(".")[0] in own and plain.get(key) != value]
    return [
        f"{key}={str(given[key]).removesuffix('.0')}: no stage reads it here; set common.{key}, or stages.NAME.{key}"
        for key in changed
        if given[key] not in ({}, None)
    ]


def _first(stages: Stages, name: str) -> str:
    return stages.rounds[name].results[0] if name in stages.rounds else name


def _placeholder_run(folder: Path, run: Run) -> str:
    """A folder that looks like the finished run of `run`, without weights."""
    adapter = run.peft.lora if run.peft.method == "lora" and run.job == "train" else None
    base = {"path": run.model.path, "local": False, "revision": run.model.revision, "commit": None, "dtype": "auto"}
    record: dict[str, Any] = {
        "status": "finished",
        "job": run.job,
        "trainer": run.trainer.kind,
        "base": base,
        "adapter": adapter,
    }
    record |= {"model": {"path": run.model.path}, "quantization": run.peft.quantization or None, "parents": []}
    model = RunDirectory(folder).model
    model.mkdir(parents=True)
    (model / ("config.json" if adapter is None else "adapter_config.json")).write_text("{}", encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return str(folder)
