"""The verdict: the best group at each KL budget, the difference, and whether it is more than noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.probe import intervals
from posttrain.report.groups import Group, Mean, number
from posttrain.report.maths import Spread, newcombe, spread, welch
from posttrain.runs import metrics

CONFIDENCE = 0.95
# Seeds from which a group's own spread is used; degrees of freedom from which a pooled spread is used.
ALONE, FEWEST = 3, 2
# Most groups that are named as not distinguishable from the best.
MAX_NAMED = 5


@dataclass(frozen=True)
class Candidate:
    """A model to choose: the final model of a group, or the starting policy (`group` None).

    `kl` is None where it was not measured. `rows` is the number of held-out rows if `reward` is a share of them, or 0.
    """

    label: str
    kl: Mean | None
    reward: Mean
    prompts: dict[str, float]
    group: Group | None = None
    rows: int = 0

    @property
    def distance(self) -> float:
        """Its KL in nats; infinite if it is not known."""
        return self.kl.value if self.kl else math.inf


@dataclass(frozen=True)
class Noise:
    """An interval of a difference (None: not known), and what it is over: seeds, pooled seeds, prompts, or "".

    `spread` is the spread between seeds, if it is pooled over more groups than the two.
    """

    interval: tuple[float, float] | None
    over: str
    spread: Spread | None = None

    @property
    def exceeded(self) -> bool:
        """Whether the difference is larger than the noise: the interval excludes 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclass(frozen=True)
class Verdict:
    """`noise` belongs to the `difference` between best and next; `ties` are all that may be as good as the best."""

    budget: float | None
    best: Candidate
    next: Candidate | None
    difference: float | None
    noise: Noise
    ties: tuple[Candidate, ...]
    sentence: str


def judge(
    candidates: Sequence[Candidate],
    metric: str,
    budget: float | None,
    minimise: bool,
    everyone: Sequence[Candidate] = (),
) -> Verdict:
    """The best and the next of the candidates with at most `budget` nats; the start is one of them, at KL 0.

    The noise between seeds is estimated from `everyone` (by default `candidates`).
    """
    sign = -1.0 if minimise else 1.0
    allowed = [c for c in candidates if budget is None or c.distance <= budget]
    # Of equals, the one with the lower KL, so that the start comes before groups that gained nothing.
    best, *others = sorted(allowed, key=lambda c: (-sign * c.reward.value, c.distance))
    within = f"With at most {budget:g} nats of KL" if budget is not None else "At any KL" if best.kl else "Held out"
    alone = len(candidates) == 1 and len(everyone) < 2
    sentence = f"{within}, {_named(best)} is {'the only one' if alone else 'best'}: {name(metric)} {best.reward}"
    sentence += f" at a KL of {best.kl} nats" if best.kl else ""
    if not others:
        sentence += "." if alone else "; nothing else has so little KL."
        return Verdict(budget, best, None, None, Noise(None, ""), (), sentence)
    second, pool = others[0], everyone or candidates
    difference, noise = best.reward.value - second.reward.value, compare(best, second, pool)
    ties = _ties(best, others, pool) if noise.interval and not noise.exceeded else ()
    there = f" at {second.kl}" if best.kl and second.kl else ""
    if difference == 0:
        sentence += f", the same as {_named(second)} ({second.reward}{there}).{_tied(ties, best)}"
    else:
        sentence += f", {number(abs(difference))} {'less' if minimise else 'more'} than {_named(second)} "
        sentence += f"({second.reward}{there}). {_noise(noise, best, second)}{_tied(ties, best)}"
    return Verdict(budget, best, second, difference, noise, ties, sentence)


def name(metric: str) -> str:
    """A metric in words, without the colon that its title may have."""
    return metrics.title(metric).replace(": ", " ")


def _named(candidate: Candidate) -> str:
    if candidate.group is None:
        return candidate.label
    seeds = ", ".join(str(seed) for seed in candidate.group.seeds)
    return f"{candidate.label} ({'seeds' if len(candidate.group.seeds) > 1 else 'seed'} {seeds})"


def compare(
    first: Candidate, second: Candidate, pool: Sequence[Candidate] = (), confidence: float = CONFIDENCE
) -> Noise:
    """The interval of `first` - `second`: over their seeds, or those of `pool`, if there are enough; else over prompts.

    The start is one model, so it has no noise between seeds. Over prompts, the interval is paired.
    """
    difference = first.reward.value - second.reward.value
    own = [c.reward.each for c in (first, second) if c.group is not None]
    rest = [c.reward.each for c in pool if c.group is not None and c is not first and c is not second]
    seeds = [len(each) for each in own]
    if min(seeds) < ALONE and (pooled := _pooled(own, rest)):
        return Noise(pooled.interval(difference, seeds, confidence), "pooled seeds", pooled)
    if min(seeds) > 1 and (alone := spread(own)):
        both = len(own) > 1
        known = welch(own[0], own[1], confidence) if both else alone.interval(difference, seeds, confidence)
        return Noise(known, "seeds")
    if first.rows and second.rows:
        shares = [(c.reward.value, c.rows) for c in (first, second)]
        return Noise(newcombe(shares[0], shares[1], confidence), "rows")
    return over_prompts(first, second, confidence)


def over_prompts(first: Candidate, second: Candidate, confidence: float = CONFIDENCE) -> Noise:
    """The bootstrap interval of `first` - `second` on the prompts that both answered."""
    shared = [prompt for prompt in first.prompts if prompt in second.prompts]
    groups = list(range(len(shared)))
    a, b = (intervals.mean([c.prompts[p] for p in shared], groups) for c in (first, second))
    if len(shared) > 1 and (ends := intervals.interval(intervals.difference(a, b), confidence, 2000)):
        return Noise(ends, "prompts")
    return Noise(None, "")


def _pooled(own: Sequence[Sequence[float]], rest: Sequence[Sequence[float]]) -> Spread | None:
    """The spread pooled over `own` and `rest`; None if the seeds are too few, or vary less in `rest` than in `own`."""
    mine, others, every = spread(own), spread(rest), spread([*own, *rest])
    if others is None or every is None or every.freedom < FEWEST:
        return None
    return None if mine and mine.exceeds(others) else every


def _ties(best: Candidate, others: Sequence[Candidate], pool: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Those of `others` that are not behind `best` by more than noise, at a joint confidence (Bonferroni)."""
    confidence = 1 - (1 - CONFIDENCE) / len(others)
    noises = [(c, compare(best, c, pool, confidence)) for c in others]
    return tuple(c for c, noise in noises if noise.interval and not noise.exceeded)


def _tied(ties: Sequence[Candidate], best: Candidate) -> str:
    """A sentence on the others that may be as good, and on the one with the lowest KL."""
    if len(ties) < 2:
        return ""
    labels = [c.label for c in ties[1:]]
    named = labels if len(labels) <= MAX_NAMED else [*labels[: MAX_NAMED - 1], f"{len(labels) - MAX_NAMED + 1} more"]
    listed = f"{', '.join(named[:-1])} and {named[-1]}" if len(named) > 1 else named[0]
    nearest = min((best, *ties), key=lambda c: c.distance)
    least = f"; of all these {nearest.label} has the least KL" if nearest.kl else ""
    return f" The same holds for {listed}{least}."


def _noise(noise: Noise, best: Candidate, second: Candidate) -> str:
    """A sentence on whether the difference is larger than the noise, and on the kind of noise."""
    if noise.interval is None:
        return (
            "One seed does not show whether that is more than noise: train each with two seeds or more "
            "(trainer.args.seed=1,2)."
        )
    size = "larger" if noise.exceeded else "not larger"
    span = f"95% interval of the difference {number(noise.interval[0])} to {number(noise.interval[1])}"
    one = " and ".join(c.label for c in (best, second) if len(c.reward.each) < 2 and c.group is not None)
    if noise.over == "prompts":
        known = f"; with one seed of {one} the noise between seeds is not known" if one else ""
        return f"That is {size} than the noise over prompts ({span}, paired{known})."
    if noise.over == "rows":
        known = f"; with one seed of {one} the noise between seeds is not known" if one else ""
        return f"That is {size} than the noise over the held-out rows ({span}, rows taken as independent{known})."
    if noise.spread:
        deviation = number(math.sqrt(noise.spread.variance))
        taken = f", and taken to hold for {one}" if one else ""
        span += f"; standard deviation between seeds {deviation}, pooled over {noise.spread.groups} settings{taken}"
    if not noise.exceeded:
        return f"That is not larger than the noise between seeds ({span}): more seeds would tell."
    prompts = over_prompts(best, second)
    if not prompts.interval or prompts.exceeded:
        return f"That is larger than the noise between seeds ({span})."
    ends = " to ".join(map(number, prompts.interval))
    return f"That is larger than the noise between seeds ({span}), but not than that over prompts ({ends}, paired)."
