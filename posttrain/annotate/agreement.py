"""How far people agree, beyond chance: Cohen's kappa of two, Krippendorff's alpha of all.

Categories are the completions, in an order that says nothing about them, and "tie". Items that someone skipped are
missing values. A tie is a category like the others: no credit for half an agreement.
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
# Items below which a bootstrap over them says nothing.
MIN_ITEMS = 10
Votes = Mapping[str, Mapping[str, Hashable]]  # item -> annotator -> choice


@dataclass(frozen=True)
class Person:
    """The figures of one annotator. `first` is the share of choices that fell on the first place of the page."""

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
    """Two annotators, the items both voted on, the share of equal votes, and kappa (`None`: not defined)."""

    one: str
    other: str
    items: int
    equal: float
    kappa: float | None


def kappa(votes: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Cohen's kappa, (observed - expected) / (1 - expected); `None` without votes, or where both always say one thing.

    Cohen 1960, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20(1).
    """
    if not votes:
        return None
    observed = sum(one == other for one, other in votes) / len(votes)
    ones, others = (Counter(side) for side in zip(*votes, strict=True))
    expected = sum(ones[category] * others[category] for category in ones) / len(votes) ** 2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def alpha(votes: Votes) -> float | None:
    """Krippendorff's alpha for nominal data, items with one vote left out; `None` where no two votes could differ.

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    import krippendorff

    counts = _counts(votes)
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")) if counts else None


def alpha_interval(votes: Votes) -> tuple[float, float] | None:
    """The 95% interval of `alpha`, by a bootstrap (BCa) over items.

    `None` with fewer than `MIN_ITEMS` items, and where all agree: resampling cannot show what it has never seen.
    """
    import numpy as np

    from posttrain.probe.intervals import Metric, interval

    counts = np.asarray(_counts(votes), float)
    if len(counts) < MIN_ITEMS:
        return None
    given = counts.sum(1)
    # Disagreement within items, of which alpha is a function together with how often each category was chosen.
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
    """How often each category was chosen, for the items with two or more votes; [] where there is one category."""
    several = [list(given.values()) for given in votes.values() if len(given) > 1]
    categories = sorted({choice for given in several for choice in given}, key=str)
    return [[given.count(category) for category in categories] for given in several] if len(categories) > 1 else []


def votes(answers: Answers) -> dict[str, dict[str, Hashable]]:
    """The choices that are no skip."""
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
