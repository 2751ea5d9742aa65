"""Agreement of annotators beyond chance: Cohen's kappa for two, Krippendorff's alpha for all.

Categories are the indices of completions, whose order is arbitrary, and "tie". Skipped items are missing values. A tie
is a category like the others, without partial agreement.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from posttrain.annotate.answers import Answers

RESAMPLES = 1000
# Least number of items for a bootstrap.
MIN_ITEMS = 10
Votes = Mapping[str, Mapping[str, Hashable]]  # item -> annotator -> choice


@dataclass(frozen=True)
class Person:
    """The figures of one annotator. `first` is the share of choices of the completion in first place on the page."""

    name: str
    answered: int
    ties: int
    skips: int
    flags: int
    first: float | None
    seconds: float | None
    as_data: float | None


@dataclass(frozen=True)
class Pair:
    """Two annotators: the number of common items, the share of equal votes, and kappa (`None`: not defined)."""

    one: str
    other: str
    items: int
    equal: float
    kappa: float | None


def kappa(votes: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Cohen's kappa, (observed - expected) / (1 - expected); `None` without votes, or if both always vote the same.

    Cohen 1960, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20(1).
    """
    if not votes:
        return None
    observed = sum(one == other for one, other in votes) / len(votes)
    ones, others = (Counter(side) for side in zip(*votes, strict=True))
    expected = sum(ones[category] * others[category] for category in ones) / len(votes) ** 2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def alpha(votes: Votes) -> float | None:
    """Krippendorff's alpha for nominal data, without items with one vote; `None` if no votes can differ.

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    import krippendorff

    counts = _counts(votes)
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")) if counts else None


def alpha_interval(votes: Votes) -> tuple[float, float] | None:
    """The 95% interval of `alpha`, by a bootstrap (BCa) over items.

    `None` with fewer than `MIN_ITEMS` items, and if all agree, since resampling then shows no variation.
    """
    import numpy as np

    from posttrain.probe.intervals import Metric, interval

    counts = np.asarray(_counts(votes), float)
    if len(counts) < MIN_ITEMS:
        return None
    given = counts.sum(1)
    # Alpha is a function of the disagreement within items and of the number of votes per category.
    within = (given**2 - (counts**2).sum(1)) / (given - 1)
    if not within.any():
        return None
    return interval(Metric(np.column_stack([within, counts]), np.arange(len(counts)), _alpha), 0.95, RESAMPLES)


def _alpha(sums: Any) -> Any:
    """1 - (n - 1) within / (n² - Σ n_c²), from sums (…, 1 + categories)."""
    import numpy as np

    chosen = sums[..., 1:]
    n = chosen.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - (n - 1) * sums[..., 0] / (n**2 - (chosen**2).sum(-1))


def _counts(votes: Votes) -> list[list[int]]:
    """The number of votes per category, for items with two or more votes; [] if there is only one category."""
    several = [list(given.values()) for given in votes.values() if len(given) > 1]
    categories = sorted({choice for given in several for choice in given}, key=str)
    return [[given.count(category) for category in categories] for given in several] if len(categories) > 1 else []


def votes(answers: Answers) -> dict[str, dict[str, Hashable]]:
    """Item -> annotator -> choice, without skips."""
    return {
        item: {answer["annotator"]: answer["choice"] for answer in given if answer["choice"] != "skip"}
        for item, given in answers.by_item().items()
    }


def pairs(votes: Votes) -> list[Pair]:
    """All pairs of annotators who voted on a common item."""
    names = sorted({name for given in votes.values() for name in given})
    found = []
    for one, other in itertools.combinations(names, 2):
        both = [(given[one], given[other]) for given in votes.values() if one in given and other in given]
        if both:
            equal = sum(a == b for a, b in both) / len(both)
            found.append(Pair(one, other, len(both), equal, kappa(both)))
    return found


def people(answers: Answers) -> list[Person]:
    return [_person(answers, name) for name in answers.annotators()]


def _person(answers: Answers, name: str) -> Person:
    given = [answer for (annotator, _), answer in answers.standing.items() if annotator == name]
    chosen = [answer for answer in given if isinstance(answer["choice"], int)]
    known = [
        answer["choice"] == preferred
        for answer in chosen
        if (preferred := answers.items[answer["item"]].preferred) is not None
    ]
    times = [answer["seconds"] for answer in given if answer["seconds"] is not None]
    return Person(
        name=name,
        answered=len(given),
        ties=sum(answer["choice"] == "tie" for answer in given),
        skips=sum(answer["choice"] == "skip" for answer in given),
        flags=sum(answer["flag"] for answer in given),
        first=sum(answer["place"] == 0 for answer in chosen) / len(chosen) if chosen else None,
        seconds=median(times) if times else None,
        as_data=sum(known) / len(known) if known else None,
    )
