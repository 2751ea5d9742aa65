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

from posttrain.annotate.answers import Answers

Votes = Mapping[str, Mapping[str, Hashable]]  # item -> annotator -> choice


@dataclass(frozen=True)
class Person:
    """What one annotator did. `first` is the share of choices that fell on the first place of the page."""

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

    several = {item: given for item, given in votes.items() if len(given) > 1}
    categories = sorted({choice for given in several.values() for choice in given.values()}, key=str)
    if len(categories) < 2:
        return None
    counts = [[list(given.values()).count(category) for category in categories] for given in several.values()]
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


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
