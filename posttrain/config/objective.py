"""`objective`: the number that a sweep optimises, or the numbers of a sweep that draws a front.

`METRIC` is its last value in a run. `METRIC at kl 5` is its best value over the logged points whose `probe/kl` is at
most 5 nats: what the run could give under that budget, had it been stopped there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from posttrain.errors import PosttrainError

AT_KL = re.compile(r"(?P<metric>\S+)\s+at\s+(?:probe/)?kl\s*(?:<=|≤)?\s*(?P<budget>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)")
# Of what less is better; everything else is taken to be better when it is more.
LOWER_IS_BETTER = ("loss", "perplexity", "nll", "forgetting", "repetition", "self_bleu", "kl", "gold_drop")


@dataclass(frozen=True)
class Objective:
    """One number: the metric, and the most KL in nats at which it counts."""

    text: str
    metric: str
    budget: float | None = None


def parse(objective: Any) -> list[Objective]:
    """One or several of what `objective` names; raises `PosttrainError` for what cannot be read."""
    if objective is None:
        return []
    several = objective if isinstance(objective, list) else [objective]
    if not several or not all(isinstance(text, str) and text.strip() for text in several):
        raise PosttrainError(f"objective={objective}: expected a metric, or a list of them, such as probe/rewards/NAME")
    return [_one(text.strip()) for text in several]


def _one(text: str) -> Objective:
    if " " not in text:
        return Objective(text, text)
    if not (match := AT_KL.fullmatch(text)):
        raise PosttrainError(
            f"objective={text}: expected METRIC, or METRIC at kl NUMBER, such as probe/gold/rm at kl 5"
        )
    return Objective(text, match["metric"], float(match["budget"]))


def check(objective: Any) -> list[str]:
    """What is wrong with the setting."""
    try:
        parse(objective)
    except PosttrainError as error:
        return [str(error)]
    return []


def unmeasured(objective: Any, rewards: Iterable[str], gold: Iterable[str], probed: bool) -> list[str]:
    """What of the setting no run will measure: of a probe that is off, or of `rewards` and `gold` it does not have."""
    there = [*(f"probe/gold/{name}" for name in gold), *(f"probe/rewards/{name}" for name in rewards)]
    errors = []
    for one in parse(objective) if not check(objective) else []:
        if not probed and (one.metric.startswith("probe/") or one.budget is not None):
            errors.append(f"objective={one.text}: there is no probe in this run; set probe.prompts")
        elif one.metric.startswith(("probe/gold/", "probe/rewards/")) and one.metric not in there:
            errors.append(f"objective={one.text}: no such reward; there are {', '.join(there) or 'none'}")
    return errors


def lower_is_better(metric: str) -> bool:
    """By its name: a loss, a KL, repetition, forgetting. A reward may be called as it likes: its weight decides."""
    if metric.startswith(("probe/rewards/", "probe/gold/")):
        return False
    return metric == "probe/refusals/harmless" or any(
        part.removeprefix("eval_") in LOWER_IS_BETTER for part in metric.split("/")
    )
