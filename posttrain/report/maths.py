"""Pareto front, best-of-n, and the curves of over-optimisation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from posttrain.probe.intervals import wilson


def pareto_front(points: Sequence[tuple[float, float]], minimise: bool = False) -> list[int]:
    """Indices of the (KL, reward) points on the Pareto front, by rising KL; of equal points the first."""
    sign = -1.0 if minimise else 1.0
    front: list[int] = []
    best = -math.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1])):
        if sign * points[i][1] > best:
            front.append(i)
            best = sign * points[i][1]
    return front


def best_of_n_kl(n: int) -> float:
    """KL in nats of best-of-n to the policy it draws from: log n - (n - 1) / n.

    Source: Stiennon et al. 2020, "Learning to summarize from human feedback", appendix G.3. An upper bound that is
    tight while completions seldom repeat (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def best_of_n(proxy: Sequence[float], values: Sequence[float], n: int) -> float:
    """The expected value of the completion that `proxy` prefers among n, from N >= n completions of one prompt.

    Unbiased: the mean over all subsets of n. Sorted by the proxy, the i-th of N (from 0) is the best in C(i, n - 1) of
    the C(N, n) subsets; completions with equal proxy share their subsets.
    Source: Nakano et al. 2021, "WebGPT", appendix I; Gao et al. 2022, section 2.
    """
    if not 1 <= n <= len(proxy):
        raise ValueError(f"n={n}: expected 1 to {len(proxy)}")
    scores, rewards = np.asarray(proxy, float), np.asarray(values, float)
    order = np.argsort(scores, kind="stable")
    subsets = math.comb(len(scores), n)
    shares = np.array([math.comb(i, n - 1) / subsets for i in range(len(scores))])
    _, tied = np.unique(scores[order], return_inverse=True)
    shared = np.bincount(tied, shares) / np.bincount(tied)
    return float(shared[tied] @ rewards[order])


@dataclass(frozen=True)
class Fit:
    """A curve of over-optimisation: the reward gained at d = sqrt(KL), by alpha and beta of `form`.

    `rl`: d (alpha - beta log d); `best_of_n`: d (alpha - beta d). `errors` are the standard errors of alpha and beta,
    which are too small if points are dependent; `r2` is the share of explained variance, `reach` the largest KL in
    nats.
    Source: Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization", section 3.1.
    """

    form: str
    alpha: float
    beta: float
    r2: float
    points: int
    reach: float
    errors: tuple[float, float] = (math.nan, math.nan)

    def __call__(self, d: np.ndarray) -> np.ndarray:
        d = np.asarray(d, float)
        if self.form == "best_of_n":
            return d * (self.alpha - self.beta * d)
        logs = np.log(d, out=np.zeros_like(d), where=d > 0)  # d log d is 0 at 0
        return d * (self.alpha - self.beta * logs)

    @property
    def peak(self) -> tuple[float, float] | None:
        """KL in nats and gain at the maximum, where the derivative is 0; `None` where the curve only rises or falls."""
        if self.beta <= 0:
            return None
        ratio = self.alpha / self.beta
        d = ratio / 2 if self.form == "best_of_n" else math.exp(min(ratio - 1, 50))
        return (d * d, float(self(np.array(d)))) if 0 < d < 1e3 else None


def fit(form: str, kl: Sequence[float], gain: Sequence[float]) -> Fit | None:
    """Least squares in alpha and beta, both linear; `None` with fewer than three different KLs above 0.

    `gain` is the reward minus that of the starting policy, so the curve goes through (0, 0).
    """
    d = np.sqrt(np.asarray(kl, float))
    y = np.asarray(gain, float)[d > 0]
    d = d[d > 0]
    if len(np.unique(d.round(9))) < 3:
        return None
    bend = d * d if form == "best_of_n" else d * np.log(d)
    columns = np.stack([d, -bend], 1)
    (alpha, beta), *_ = np.linalg.lstsq(columns, y, rcond=None)
    found = Fit(form, float(alpha), float(beta), 0.0, len(d), float(d.max() ** 2))
    total = float(((y - y.mean()) ** 2).sum())
    left = float(((y - found(d)) ** 2).sum())
    spread = np.sqrt(np.diag(np.linalg.pinv(columns.T @ columns)) * left / (len(d) - 2))
    r2 = 1 - left / total if total > 0 else 1.0
    return replace(found, r2=r2, errors=(float(spread[0]), float(spread[1])))


def welch(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the difference of two means of independent samples, at least two each (Welch 1947)."""
    from scipy.stats import ttest_ind

    if np.ptp(first) == np.ptp(second) == 0:
        return (float(np.mean(first) - np.mean(second)),) * 2
    ends = ttest_ind(first, second, equal_var=False).confidence_interval(confidence)
    return float(ends.low), float(ends.high)


def newcombe(first: tuple[float, int], second: tuple[float, int], confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the difference of two shares, each (share, trials), taken as independent.

    Source: Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10.
    """
    from scipy.special import ndtri

    z = float(ndtri((1 + confidence) / 2))
    (p, n), (q, m) = first, second
    (low_p, high_p), (low_q, high_q) = wilson(p * n, n, z), wilson(q * m, m, z)
    difference = p - q
    return (
        difference - math.hypot(p - low_p, high_q - q),
        difference + math.hypot(high_p - p, q - low_q),
    )


@dataclass(frozen=True)
class Spread:
    """The variance within groups, pooled over `groups` of them, and its degrees of freedom."""

    variance: float
    freedom: int
    groups: int

    def interval(self, difference: float, counts: Sequence[int], confidence: float = 0.95) -> tuple[float, float]:
        """The interval of a difference of means over `counts` values each; a mean without a count is exact."""
        from scipy.special import stdtrit

        error = math.sqrt(self.variance * sum(1 / n for n in counts))
        half = float(stdtrit(self.freedom, (1 + confidence) / 2)) * error
        return difference - half, difference + half

    def exceeds(self, other: Spread, level: float = 0.01) -> bool:
        """Whether the variance is significantly larger than `other`, which is of other groups (one-sided F test)."""
        from scipy.special import fdtri

        return self.variance > other.variance * float(fdtri(self.freedom, other.freedom, 1 - level))


def spread(samples: Iterable[Sequence[float]]) -> Spread | None:
    """The variance within `samples`, from those with two values or more; `None` without any, and where all are equal.

    The mean square within groups of a one-way analysis of variance: the sum of squared distances to each sample's
    mean, divided by the number of values minus that of samples. It assumes equal variances.
    Source: Fisher 1925, "Statistical Methods for Research Workers", chapter VII.
    """
    arrays = [np.asarray(values, float) for values in samples if len(values) > 1]
    freedom = sum(len(x) - 1 for x in arrays)
    squares = sum(float(((x - x.mean()) ** 2).sum()) for x in arrays)
    return Spread(squares / freedom, freedom, len(arrays)) if any(np.ptp(x) > 0 for x in arrays) else None
