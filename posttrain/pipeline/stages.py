"""The stages of a pipeline as they are written, rounds expanded, in the order in which they run."""

import graphlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config.flat_settings import flatten, groups
from posttrain.config.suggestions import did_you_mean
from posttrain.errors import PosttrainError
from posttrain.pipeline.gates import Gate

# Settings of the whole pipeline, which a stage cannot have -> the fix.
OF_PIPELINE = {
    "name": "a stage is named by its key; leave it out",
    "output_dir": "set output_dir; the runs of all stages are there",
    "dry_run": "set dry_run",
    "objective": "set objective=STAGE.METRIC",
    **dict.fromkeys(("stages", "common"), "a stage is one run; write its stages beside it"),
}
# Keys of a stage that the pipeline reads; all others are settings of the stage's run.
STAGE_KEYS = ("recipe", "from", "gate", "launch", "each")
GROUP_KEYS = ("rounds", "start", "result", "stop", "stages")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
PREVIOUS = "previous"


@dataclass(frozen=True)
class Stage:
    """One run: its settings (flat, `a.b.c` -> value), and the config keys that get another stage's run directory.

    `rounds` names the group it repeats in and `number` its round there, from 1.
    """

    name: str
    recipe: str | None
    settings: dict[str, Any]
    parents: dict[str, str]
    gates: tuple[Gate, ...] = ()
    launch: tuple[str, ...] = ()
    rounds: str | None = None
    number: int = 0

    @property
    def path(self) -> str:
        """The place of the stage in the config."""
        if self.rounds is None:
            return f"stages.{self.name}"
        return f"stages.{self.rounds}.stages.{self.name.removesuffix(f'_{self.number}')}"


@dataclass(frozen=True)
class Rounds:
    """A group of stages that repeats.

    `results` are the result stages of each round. If `metric` of a round's stage in `measured` is not above that of the
    round before (of `start`, for the first round), no further round runs.
    """

    start: str | None
    results: tuple[str, ...]
    measured: tuple[str, ...]
    metric: str | None


@dataclass(frozen=True)
class Stages:
    """All stages in the order in which they run, and the groups among them."""

    stages: dict[str, Stage]
    rounds: dict[str, Rounds]

    def of(self, name: str) -> set[str]:
        """The stages that must be finished before `name`, a stage or a group, can be resolved to a single stage."""
        if name not in self.rounds:
            return {name}
        group = self.rounds[name]
        known = {*group.results, *(group.measured if group.metric else ())}
        return known | (self.of(group.start) if group.start and group.metric else set())


def read(entries: Mapping[str, Any], common: Mapping[str, Any] | None = None) -> Stages:
    """The stages written in `entries`, `common` under each; raises `PosttrainError` with all that is wrong."""
    errors: list[str] = []
    found: dict[str, Stage] = {}
    groups: dict[str, Rounds] = {}
    common = common or {}
    errors += [f"common.{key}: belongs to a stage" for key in ("from", "each") if key in common]
    for name, entry in entries.items():
        if entry is None:  # taken out on the command line: stages.NAME=null
            continue
        if not isinstance(entry, dict):
            errors.append(f"stages.{name}={entry!r}: expected a recipe and settings, {{recipe: NAME, ...}}")
            continue
        errors += _name(name, found, groups)
        if "rounds" in entry:
            made, group = _expand(name, entry, common, errors)
            errors += [e for stage in made for e in _name(stage.name, found, groups)]
            groups[name] = group
        else:
            made = [_stage(name, f"stages.{name}", entry, common, errors)]
        found |= {stage.name: stage for stage in made}
    if not found:
        errors.append("stages: a pipeline needs at least one, stages.NAME.recipe=RECIPE")
    errors += _references(found, groups)
    if errors:
        raise PosttrainError("\n".join(dict.fromkeys(errors)))  # all rounds of a group have the same errors
    return _ordered(Stages(found, groups))


def _name(name: str, found: Iterable[str], groups: Iterable[str]) -> list[str]:
    if not NAME.fullmatch(name):
        return [f"stages.{name}: a name begins with a letter, and has letters, digits, _ and - only"]
    if name == PREVIOUS or name in {*found, *groups}:
        return [f"stages.{name}: the name is taken; choose another"]
    return []


def _stage(name: str, path: str, entry: dict[str, Any], common: Mapping[str, Any], errors: list[str]) -> Stage:
    own = {key: value for layer in (common, entry) for key, value in layer.items() if key in STAGE_KEYS}
    settings = flatten(*({k: v for k, v in layer.items() if k not in STAGE_KEYS} for layer in (common, entry)))
    for key in flatten({k: v for k, v in common.items() if k not in STAGE_KEYS}):
        group = key.partition(".")[0]
        if "." in key and isinstance(choice := entry.get(group), str) and choice != "none" and group in groups():
            errors.append(
                f"common.{key}: {path}.{group}={choice} begins that group anew and would drop it; set {path}.{key}, or "
                f"choose {group} in common"
            )
    if "each" in entry:
        errors.append(f"{path}.each: lists a value for every round; only a stage in a group of rounds has it")
    for key, fix in OF_PIPELINE.items():
        errors += [f"{at}.{key}: {fix}" for at, layer in (("common", common), (path, entry)) if key in layer]
    if settings.get("job") == "pipeline":
        errors.append(f"{path}.job=pipeline: a stage is one run; write its stages here")
    parents = own.get("from") or {}
    if isinstance(parents, dict):  # null on a command line removes a parent of the recipe
        parents = {key: value for key, value in flatten(parents).items() if value is not None}
    if not isinstance(parents, dict) or not all(isinstance(value, str) for value in parents.values()):
        errors.append(f"{path}.from={parents!r}: expected config keys and stages, {{model.init_from: STAGE}}")
        parents = {}
    return Stage(
        name,
        own.get("recipe"),
        settings,
        parents,
        _gates(own.get("gate"), path, name, errors),
        _launch(own.get("launch"), path, errors),
    )


def _gates(written: Any, path: str, name: str, errors: list[str]) -> tuple[Gate, ...]:
    gates = []
    for text in written if isinstance(written, list) else [written] if written is not None else []:
        try:
            gates.append(Gate.parse(text, name))
        except ValueError as error:
            errors.append(f"{path}.gate={text}: {error}")
    return tuple(gates)


def _launch(written: Any, path: str, errors: list[str]) -> tuple[str, ...]:
    try:
        words = shlex.split(written) if isinstance(written, str) else written or []
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str | int | float) for word in words):
        errors.append(f"{path}.launch={written!r}: expected the words of a command, [accelerate, launch]")
        return ()
    if words and not shutil.which(str(words[0]), path=search_path()):
        errors.append(f"{path}.launch={written}: no program {words[0]} here")
    return tuple(map(str, words))


def search_path() -> str:
    """Where programs are looked for: in Python's own folder first, where an environment has its own."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _expand(
    name: str, entry: dict[str, Any], common: Mapping[str, Any], errors: list[str]
) -> tuple[list[Stage], Rounds]:
    """The stages of a group that repeats, once for each round, `NAME_1`, `NAME_2`, ..."""
    path, count, inner = f"stages.{name}", entry["rounds"], entry.get("stages")
    errors += [f"{path}.{k}: unknown key; known here: {', '.join(GROUP_KEYS)}" for k in entry if k not in GROUP_KEYS]
    for key in ("start", "result", "stop"):
        if not isinstance(entry.get(key), str | None):
            errors.append(f"{path}.{key}={entry[key]}: expected {'STAGE.METRIC' if key == 'stop' else 'a stage'}")
            entry = {**entry, key: None}
    if isinstance(inner, dict):
        errors += [
            f"{path}.stages.{stage}={written!r}: expected a recipe and settings, {{recipe: NAME, ...}}"
            for stage, written in inner.items()
            if not isinstance(written, dict | None)
        ]
    if not isinstance(inner, dict) or not (inner := {k: v for k, v in inner.items() if isinstance(v, dict)}):
        errors.append(f"{path}.stages: a group of rounds needs its own stages")
        return [], Rounds(None, (), (), None)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        errors.append(f"{path}.rounds={count}: expected a number of rounds, at least 1")
        count = 1
    result = entry.get("result") or list(inner)[-1]
    measured, metric = _measure(entry.get("stop"), inner, result)
    if result not in inner:
        errors.append(f"{path}.result={result}: {_did_you_mean(result, inner)}")
    made = []
    for number in range(1, count + 1):
        before = entry.get("start") if number == 1 else f"{result}_{number - 1}"
        own = {stage: f"{stage}_{number}" for stage in inner} | ({PREVIOUS: before} if before else {})
        for stage, written in inner.items():
            where = f"{path}.stages.{stage}"
            settings = _of_round(written, number, count, where, errors)
            # First under its name without a number, with which a gate may begin.
            plain = _stage(stage, where, settings, common, errors)
            parents = {key: own.get(parent, parent) for key, parent in plain.parents.items()}
            if PREVIOUS in parents.values():
                errors.append(f"{where}.from: previous is what the first round starts from; set {path}.start=STAGE")
            made.append(
                Stage(own[stage], plain.recipe, plain.settings, parents, plain.gates, plain.launch, name, number)
            )
    numbers = range(1, count + 1)
    group = Rounds(
        entry.get("start"),
        tuple(f"{result}_{n}" for n in numbers),
        tuple(f"{measured}_{n}" for n in numbers),
        metric,
    )
    return made, group


def _of_round(entry: dict[str, Any], number: int, count: int, path: str, errors: list[str]) -> dict[str, Any]:
    """The settings of a stage in round `number`: `each` lists a value for every round."""
    written = entry.get("each") or {}
    if not isinstance(written, dict):
        errors.append(f"{path}.each={written}: expected settings, {{KEY: [VALUE, ...]}}")
        written = {}
    each = flatten(written)
    for key, values in each.items():
        if not isinstance(values, list) or len(values) < count:
            errors.append(f"{path}.each.{key}={values}: expected a list of {count}, a value for every round")
    chosen = {k: v[number - 1] for k, v in each.items() if isinstance(v, list) and len(v) >= count}
    return {**{k: v for k, v in entry.items() if k != "each"}, **chosen}


def _measure(stop: str | None, inner: Mapping[str, Any], result: str) -> tuple[str, str | None]:
    """Stage and metric of `STAGE.METRIC`, or of `METRIC`, which is that of the round's result."""
    stage, dot, metric = (stop or "").partition(".")
    return (stage, metric) if dot and stage in inner else (result, stop)


def _references(found: Mapping[str, Stage], groups: Mapping[str, Rounds]) -> list[str]:
    known = [*found, *groups]
    errors = [
        f"{stage.path}.from.{key}={parent}: {_did_you_mean(parent, known)}"
        for stage in found.values()
        for key, parent in stage.parents.items()
        if parent not in known and parent != PREVIOUS
    ]
    errors += [
        f"{stage.path}.from.{key}={parent}: this round may not run; take {found[parent].rounds}, the best round"
        for stage in found.values()
        for key, parent in stage.parents.items()
        if parent in found and _may_not_run(found[parent], groups) and found[parent].rounds != stage.rounds
    ]
    return errors + [
        f"stages.{name}.start={group.start}: {_did_you_mean(group.start, known)}"
        for name, group in groups.items()
        if group.start is not None and group.start not in known
    ]


def _may_not_run(stage: Stage, groups: Mapping[str, Rounds]) -> bool:
    return stage.rounds is not None and groups[stage.rounds].metric is not None


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    known = list(known)
    return "no such stage; " + did_you_mean(name, known, 1, f"there are {', '.join(known)}")


def _ordered(all_stages: Stages) -> Stages:
    """The stages in the order of the config, but with parents before their children."""
    stages = all_stages.stages
    needs = {name: {p for key in s.parents.values() for p in all_stages.of(key)} for name, s in stages.items()}
    for name, stage in stages.items():
        group = all_stages.rounds.get(stage.rounds or "")
        if group and group.metric:  # whether a round runs depends on the round before, and on the start
            needs[name] |= {s.name for s in stages.values() if s.rounds == stage.rounds and s.number < stage.number}
            needs[name] |= all_stages.of(group.start) if group.start else set()
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        raise PosttrainError(f"stages: {' needs '.join(reversed(error.args[1]))}: a circle; see `from`") from None
    order: dict[str, Stage] = {}
    while len(order) < len(stages):
        ready = next(name for name in stages if name not in order and needs[name] <= order.keys())
        order[ready] = stages[ready]
    return Stages(order, all_stages.rounds)
