"""Checks of choices, of the probe and of the alarms; imports nothing heavy."""

from __future__ import annotations

import difflib

from posttrain.config import alarms, trainers
from posttrain.config.schema import Run


def probe(run: Run) -> list[str]:
    """Everything wrong with the settings of the probe and of the alarms."""
    config = run.probe
    errors: list[str] = []
    # job=sample trains nothing and has no probe.
    for name, entry in config.gold.items() if run.job != "sample" else ():
        same = [
            n
            for n, e in run.reward.items()
            if (e.function, e.model, e.args) == (entry.function, entry.model, entry.args)
        ]
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
        measured = {
            "forgetting": None if config.texts else "probe.texts=embedded:texts, or a file",
            "over_optimisation": None if config.gold else "probe.gold.NAME.function or model, a reward not trained on",
        }
        errors += alarms.check(run.alarms, during, kind is not None and kind.is_a("PPOTrainer"), measured)
    return errors


def wrong_choice(key: str, value: object, allowed: tuple[str, ...]) -> str | None:
    """What is wrong with a value that must be one of `allowed`."""
    if value in allowed:
        return None
    near = difflib.get_close_matches(str(value), allowed, n=1)
    return f"{key}={value}: " + (f"did you mean {near[0]}? " if near else "") + f"choose from {', '.join(allowed)}"
