"""Metrics with bootstrap confidence intervals, over prompts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, stdev

import numpy as np

SEED = 0
# Rows of resampled counts that are in memory at a time.
CHUNK = 4_000_000


@dataclass(frozen=True)
class Metric:
    """A number over items: `of` computes it from the sums of `columns`, (items, k), over the items; (..., k) to (...).

    `groups`, (items,), is the group of each item, such as its prompt. Items without a value have a row of zeros.
    """

    columns: np.ndarray
    groups: np.ndarray
    of: Callable[[np.ndarray], np.ndarray]

    @property
    def value(self) -> float:
        return float(self.of(self.columns.sum(0)))

    @property
    def applies(self) -> np.ndarray:
        return np.asarray(self.columns.any(-1))

    @property
    def count(self) -> int:
        return int(self.applies.sum())


def mean(values: Sequence[float | None], groups: Sequence[int]) -> Metric:
    """The mean of the values that are not None."""
    return ratio([value or 0.0 for value in values], [float(value is not None) for value in values], groups)


def ratio(numerator: Sequence[float], denominator: Sequence[float], groups: Sequence[int]) -> Metric:
    """The sum of `numerator` divided by the sum of `denominator`, such as a loss per token."""
    columns = np.stack([np.asarray(numerator, float), np.asarray(denominator, float)], 1)
    return Metric(columns, np.asarray(groups), _divided)


def exponential(metric: Metric) -> Metric:
    return Metric(metric.columns, metric.groups, lambda sums: np.exp(metric.of(sums)))


def difference(first: Metric, second: Metric) -> Metric:
    """`first` - `second` over the same items; it is paired, so that the difficulty of an item cancels.

    Raises `ValueError` where the items are not the same.
    """
    if not np.array_equal(first.groups, second.groups):
        raise ValueError("paired metrics are over the same items")
    k = first.columns.shape[1]
    columns = np.concatenate([first.columns, second.columns], 1)
    return Metric(columns, first.groups, lambda sums: first.of(sums[..., :k]) - second.of(sums[..., k:]))


def _divided(sums: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[..., 0] / sums[..., 1]


def standard_error(values: Sequence[float]) -> float | None:
    """The standard error of the mean; `None` for fewer than two values, or where one is not finite."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 and all(map(math.isfinite, values)) else None


def wilson(successes: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """The 95% score interval of a share. Source: Wilson 1927, "Probable Inference", JASA 22."""
    if not total:
        return 0.0, 1.0
    rate = successes / total
    centre = (rate + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (rate * (1 - rate) / total + z * z / (4 * total * total)) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)


def interval(metric: Metric, confidence: float, resamples: int, seed: int = SEED) -> tuple[float, float] | None:
    """The bias-corrected and accelerated bootstrap interval (BCa) of the metric; None with fewer than two groups.

    Groups are resampled as a whole: answers to one prompt are similar, and treating them as independent would make the
    interval too narrow. If all resamples agree, both ends are the value.
    Source: Efron 1987, "Better Bootstrap Confidence Intervals", JASA 82; the acceleration by the jackknife, as in Efron
    and Tibshirani 1993, "An Introduction to the Bootstrap", eqs. 14.9 to 14.15.
    """
    names, index = np.unique(metric.groups[metric.applies], return_inverse=True)
    if len(names) < 2:
        return None
    sums = np.zeros((len(names), metric.columns.shape[1]))
    np.add.at(sums, index, metric.columns[metric.applies])
    value, drawn = metric.of(sums.sum(0)), metric.of(_resampled(sums, resamples, seed))
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or not np.isfinite(value):
        return None
    normal, tail = NormalDist(), (1 - confidence) / 2
    # The share below the value, ties half; kept off 0 and 1, where its normal quantile is infinite.
    below = (np.mean(drawn < value) + np.mean(drawn <= value)) / 2
    bias = normal.inv_cdf(float(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn))))
    bend = _acceleration(metric.of(sums.sum(0) - sums))

    def end(share: float) -> float:
        z = bias + normal.inv_cdf(share)
        return float(np.quantile(drawn, normal.cdf(bias + z / (1 - bend * z))))

    return end(tail), end(1 - tail)


def _acceleration(left_out: np.ndarray) -> float:
    """The acceleration of BCa, skewness / (6 sqrt(n)), from n jackknife values (with one group left out)."""
    away = np.mean(left_out) - left_out
    spread = float(np.sum(away**2))
    return float(np.sum(away**3)) / (6 * spread**1.5) if np.isfinite(spread) and spread > 0 else 0.0


def _resampled(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums over groups that are drawn with replacement, (resamples, k), given each group's `sums`, (groups, k)."""
    generator, groups = np.random.default_rng(seed), len(sums)
    parts, step = [], max(CHUNK // groups, 1)
    for start in range(0, resamples, step):
        counts = generator.multinomial(groups, np.full(groups, 1 / groups), size=min(step, resamples - start))
        parts.append(counts @ sums)
    return np.concatenate(parts)
