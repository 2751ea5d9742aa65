"""Checks of choices, of models and where they are, of the probe and of the alarms; imports nothing heavy."""

import os
import re
from collections.abc import Iterator

from posttrain.config import alarms, trainers
from posttrain.config.schema import Run
from posttrain.errors import choose, near_path

EMBEDDED = ("embedded:smollm2", "embedded:tiny")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def models(run: Run) -> Iterator[str]:
    """Models that do not exist, and revisions, names and splits of what is not on the hub."""
    named = {"model.path": run.model.path, "trainer.teacher.model": run.trainer.teacher.model}
    named |= {f"{at}.{name}.model": entry.model for at, some in run.rewards.items() for name, entry in some.items()}
    if run.job == "evaluate":
        named["evaluate.against"] = run.evaluate.against
    yield from [f"{key}={path}: {wrong}" for key, path in named.items() if path and (wrong := _not_there(path))]
    of_hub = [
        ("model", "revision", run.model.revision, run.model.path),
        ("trainer.teacher", "revision", run.trainer.teacher.revision, run.trainer.teacher.model),
    ]
    for at, source in (("data", vars(run.data)), *((f"data.mix.{name}", one) for name, one in run.data.mix.items())):
        path = source.get("path") if isinstance(source, dict) else None
        if not path or (isinstance(path, str) and os.path.isdir(path)):
            continue  # a folder may hold several data sets by name, and splits
        of_hub += [(at, name, source.get(name), path) for name in ("name", "revision")]
        if source.get("split", "train") != "train" and not (isinstance(path, str) and ":" in path):
            of_hub.append((at, "split", source["split"], path))
    for at, name, value, path in of_hub:
        if value and not path:
            where = f"{at}.{'model' if 'teacher' in at else 'path'}"
            yield f"{at}.{name}={value}: there is no {where}; leave it out"
        elif value and _is_here(path):
            yield f"{at}.{name}={value}: {path} is no repository of the hub; leave it out"


def _is_here(path: object) -> bool:
    """Whether it is no id of the hub, but built in, generated, a local file or a folder."""
    if not isinstance(path, str):
        return True
    return ":" in path or path.startswith((".", "/", "~")) or os.path.exists(os.path.expanduser(path))


def _not_there(path: str) -> str | None:
    """Why no model can be at `path`."""
    if path.startswith("embedded:"):
        return None if path in EMBEDDED else f"choose from {', '.join(EMBEDDED)}"
    if os.path.exists(os.path.expanduser(path)):
        return None
    if path.startswith((".", "/", "~")):
        return f"no such folder{near_path(path)}"
    return None if HUB_ID.fullmatch(path) else "neither a folder here nor an id of the hub, ORG/NAME"


def probe(run: Run) -> list[str]:
    """Everything wrong with the settings of the probe and of the alarms."""
    config = run.probe
    errors: list[str] = []
    # job=sample trains nothing and has no probe.
    for name, entry in config.gold.items() if run.job != "sample" else ():
        gold = (entry.function, entry.model, entry.grader, entry.args)
        same = [n for n, e in run.reward.items() if (e.function, e.model, e.grader, e.args) == gold]
        if name in run.reward or same:
            errors.append(f"probe.gold.{name}: training sees reward.{(same or [name])[0]}; gold must be another reward")
        if name in config.rewards:
            errors.append(f"probe.gold.{name}: probe.rewards.{name} is there too; give one of them another name")
    known = [*run.reward, *config.rewards, *config.gold]
    if config.win_by is not None and config.win_by not in known:
        errors.append(f"probe.win_by={config.win_by}: no such reward; there are {', '.join(known) or 'none'}")
    if run.job == "train":
        kind = trainers.find(run.trainer.kind)
        sampled = kind is None or not kind.scores
        during = sampled and bool(config.prompts) and bool(config.every or config.during)
        start = None if config.start else "probe.start=true"
        measured = {
            **dict.fromkeys(("collapse", "length"), start),
            "forgetting": start if config.texts else "probe.texts=embedded:texts, or a file",
            "over_optimisation": None if config.gold else "probe.gold.NAME.function or model, a reward not trained on",
        }
        errors += alarms.check(run.alarms, during, kind is not None and kind.is_a("PPOTrainer"), measured)
    return errors


def wrong_choice(key: str, value: object, allowed: tuple[str, ...]) -> str | None:
    """What is wrong with a value that must be one of `allowed`."""
    if value in allowed:
        return None
    return f"{key}={value}: {choose(value, allowed)}"
