"""Choice of the most informative comparisons: by disagreement of rewards, or else by close scores.

The disagreement of rewards about a pair is the variance over rewards of sigmoid(d), with d the difference of the pair's
rewards in units of that reward's standard deviation over the data: Christiano et al. 2017, "Deep Reinforcement Learning
from Human Preferences" (arXiv:1706.03741), section 2.2.4, which picks pairs by the variance of predictions over an
ensemble of reward models.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from statistics import pstdev, pvariance

from posttrain.annotate.candidates import Candidate, Group, choose
from posttrain.errors import PosttrainError


def order(groups: Sequence[Group], show: int, path: str) -> list[Group]:
    """The groups with their `show` most informative candidates, most informative first; those without numbers last.

    Raises `PosttrainError` where no group has any.
    """
    every = [candidate for group in groups for candidate in group.candidates]
    scales = spread(every)
    measured = []
    for group in groups:
        worth = {
            (i, j): information(group.candidates[i], group.candidates[j], scales)
            for i, j in itertools.combinations(range(len(group.candidates)), 2)
        }
        known = {pair: value for pair, value in worth.items() if value is not None}
        kept = pick(known, len(group.candidates), show)
        best = max((known[pair] for pair in itertools.combinations(kept, 2) if pair in known), default=None)
        measured.append((best, choose(group, kept)))
    if all(best is None for best, _ in measured):
        raise PosttrainError(
            f"--informative: {path} has no scores to order by; job=sample with reward=NAME, or two rewards, and "
            "sample.select=all writes them"
        )
    # The sort is stable, so equal groups stay in the order of the data.
    return [group for _, group in sorted(measured, key=lambda pair: (pair[0] is None, -(pair[0] or 0.0)))]


def spread(candidates: Sequence[Candidate]) -> dict[str, float]:
    """The standard deviation of each reward over the data, without constant rewards."""
    values: dict[str, list[float]] = {}
    for candidate in candidates:
        for name, value in candidate.rewards.items():
            values.setdefault(name, []).append(value)
    return {name: deviation for name, known in values.items() if (deviation := pstdev(known)) > 0}


def information(one: Candidate, other: Candidate, scales: Mapping[str, float]) -> float | None:
    """How informative an answer on this pair would be; `None` where its rewards and scores are unknown.

    With `scales` of two or more rewards, their disagreement (0 to 0.25); else minus the distance of the scores.
    """
    if len(scales) > 1:
        from scipy.special import expit

        names = [name for name in scales if name in one.rewards and name in other.rewards]
        if len(names) < 2:
            return None
        return pvariance([float(expit((one.rewards[n] - other.rewards[n]) / scales[n])) for n in names])
    if one.score is None or other.score is None:
        return None
    return -abs(one.score - other.score)


def pick(worth: Mapping[tuple[int, int], float], count: int, show: int) -> list[int]:
    """`show` of `count` candidates: the most informative pair, then those that add most; the first if none is known."""
    if count <= show:
        return list(range(count))
    kept = list(max(worth.items(), key=lambda entry: entry[1])[0]) if worth else [0, 1]
    while len(kept) < show:
        rest = [i for i in range(count) if i not in kept]
        kept.append(max(rest, key=lambda i: sum(worth.get((min(i, k), max(i, k)), 0.0) for k in kept)))
    return sorted(kept)
