"""Which group is best at which KL budget, by how much, and whether that is more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain import intervals
from posttrain.report.groups import Group, Mean, number
from posttrain.report.maths import welch


@dataclass(frozen=True)
class Candidate:
    """What can be chosen: a group's final model, or the starting policy (`group` None)."""

    label: str
    kl: Mean
    reward: Mean
    prompts: dict[str, float]
    group: Group | None = None


@dataclass(frozen=True)
class Verdict:
    """`interval` (95%) of the difference between best and next; `over` what it is an interval over, or ""."""

    budget: float | None
    best: Candidate
    next: Candidate | None
    difference: float | None
    interval: tuple[float, float] | None
    over: str
    sentence: str


def judge(candidates: Sequence[Candidate], metric: str, budget: float | None, minimise: bool, extra: str) -> Verdict:
    """The best and the next of those with at most `budget` nats; `candidates` holds the start, at KL 0.

    `extra` is a sentence on best-of-n, put behind.
    """
    sign = -1.0 if minimise else 1.0
    allowed = [c for c in candidates if budget is None or c.kl.value <= budget]
    # Of equals the one with the lower KL: the start before what gained nothing.
    best, *others = sorted(allowed, key=lambda c: (-sign * c.reward.value, c.kl.value))
    second = others[0] if others else None
    difference = best.reward.value - second.reward.value if second else None
    ends, over = compare(best, second) if second else (None, "")
    within = f"With at most {budget:g} nats of KL" if budget is not None else "At any KL"
    sentence = f"{within}, {_named(best)} is best: {name(metric)} {best.reward} at a KL of {best.kl} nats"
    if second and difference is not None:
        sentence += f", {number(abs(difference))} {'less' if minimise else 'more'} than {_named(second)} "
        sentence += f"({second.reward} at {second.kl}). {_noise(ends, over, best, second)}"
    else:
        sentence += "; there is nothing to compare it with."
    return Verdict(budget, best, second, difference, ends, over, f"{sentence}{extra}")


def name(metric: str) -> str:
    return metric.removeprefix("probe/")


def _named(candidate: Candidate) -> str:
    if candidate.group is None:
        return candidate.label
    seeds = ", ".join(str(seed) for seed in candidate.group.seeds)
    return f"{candidate.label} ({'seeds' if len(candidate.group.seeds) > 1 else 'seed'} {seeds})"


def compare(first: Candidate, second: Candidate) -> tuple[tuple[float, float] | None, str]:
    """The 95% interval of `first` - `second`: over seeds where both have several, else paired over prompts."""
    if min(len(first.reward.each), len(second.reward.each)) > 1:
        return welch(first.reward.each, second.reward.each), "seeds"
    shared = [prompt for prompt in first.prompts if prompt in second.prompts]
    groups = list(range(len(shared)))
    a, b = (intervals.mean([c.prompts[p] for p in shared], groups) for c in (first, second))
    if len(shared) > 1 and (ends := intervals.interval(intervals.difference(a, b), 0.95, 2000)):
        return ends, "prompts"
    return None, ""


def _noise(ends: tuple[float, float] | None, over: str, best: Candidate, second: Candidate) -> str:
    """Whether the difference is more than noise, and which noise."""
    if ends is None:
        return "Whether that is more than noise cannot be told from one seed without samples of the same prompts."
    larger = ends[0] > 0 or ends[1] < 0
    span = f"95% interval of the difference {number(ends[0])} to {number(ends[1])}"
    if over == "seeds":
        if larger:
            return f"That is larger than the noise between seeds ({span})."
        return f"That is not larger than the noise between seeds ({span}): more seeds would tell."
    one = " and ".join(c.label for c in (best, second) if len(c.reward.each) < 2 and c.group is not None)
    known = f"; with one seed of {one} the noise between seeds is not known" if one else ""
    size = "larger" if larger else "not larger"
    return f"That is {size} than the noise over prompts ({span}, paired{known})."
