"""Numbers of the report against hand-worked ones: front, best-of-n, fits, intervals."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from posttrain.probe.intervals import standard_error
from posttrain.report.groups import Mean
from posttrain.report.maths import (
    Fit,
    Spread,
    best_of_n,
    best_of_n_kl,
    fit,
    pareto_front,
    spread,
    welch,
)
from posttrain.report.verdict import Candidate, compare, judge


def test_the_front_is_what_no_other_point_beats():
    points = [(3.0, 0.5), (1.0, 0.2), (2.0, 0.6), (4.0, 0.6), (5.0, 0.9), (2.0, 0.1)]
    # 3.0 is beaten by 2.0, which has more for less; 4.0 costs more for the same.
    assert pareto_front(points) == [1, 2, 4]
    assert pareto_front(points, minimise=True) == [1, 5]
    assert pareto_front([]) == []


def test_best_of_n_is_the_mean_over_all_subsets():
    proxy, gold = [0.3, 0.1, 0.9, 0.5, 0.7], [1.0, 5.0, 2.0, 8.0, 3.0]
    for n in range(1, 6):
        subsets = list(itertools.combinations(range(5), n))
        by_hand = sum(gold[max(subset, key=proxy.__getitem__)] for subset in subsets) / len(subsets)
        assert best_of_n(proxy, gold, n) == pytest.approx(by_hand)
    assert best_of_n(proxy, proxy, 5) == 0.9


def test_equals_in_the_proxy_share():
    # All alike to the proxy: best of n is any of them.
    assert best_of_n([1, 1, 1, 1], [0, 1, 2, 5], 3) == pytest.approx(2.0)
    # Of {0, 1, 1}, two drawn: {0, 1a}, {0, 1b} and {1a, 1b} choose 4, 6 and their mean.
    assert best_of_n([0, 1, 1], [9, 4, 6], 2) == pytest.approx(5.0)
    with pytest.raises(ValueError, match="expected 1 to 3"):
        best_of_n([0, 1, 1], [9, 4, 6], 4)


def test_kl_of_best_of_n():
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)


@pytest.mark.parametrize("form", ["rl", "best_of_n"])
def test_the_fit_finds_the_curve_that_made_the_points(form):
    true = Fit(form, 0.8, 0.3, 1.0, 0, 0)
    kl = np.array([0.0, 0.25, 1.0, 4.0, 9.0, 16.0])
    found = fit(form, kl, true(np.sqrt(kl)))
    assert (found.alpha, found.beta, found.r2) == pytest.approx((0.8, 0.3, 1.0))
    assert (found.points, found.reach) == (5, 16.0)
    # The peak is above its neighbours, and where the derivative is 0 by hand.
    at, gain = found.peak
    by_hand = math.exp(0.8 / 0.3 - 1) if form == "rl" else 0.8 / 0.6
    assert at == pytest.approx(by_hand**2)
    assert gain > max(found(np.array([by_hand * 0.99, by_hand * 1.01])))
    assert gain == pytest.approx(0.3 * by_hand if form == "rl" else 0.8**2 / 1.2)


def test_errors_of_the_fit_are_those_of_least_squares():
    from scipy.optimize import curve_fit

    kl, gain = np.array([0.25, 1.0, 4.0, 9.0, 16.0]), np.array([0.5, 0.6, 1.1, 0.4, 0.2])
    found = fit("best_of_n", kl, gain)
    (alpha, beta), covariance = curve_fit(lambda d, a, b: d * (a - b * d), np.sqrt(kl), gain)
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta), rel=1e-5)
    assert found.errors == pytest.approx(np.sqrt(np.diag(covariance)), rel=1e-5)


def test_no_fit_of_too_few_points_and_no_peak_of_what_only_rises():
    assert fit("rl", [0.0, 1.0, 1.0, 4.0], [0.0, 0.1, 0.1, 0.2]) is None
    rising = fit("best_of_n", [1.0, 4.0, 9.0], [1.0, 4.0, 9.0])
    assert rising.beta == pytest.approx(-1.0)
    assert rising.peak is None


def test_welch_agrees_with_the_textbook():
    # Means 2 and 5, variances 1 and 4, three each: error sqrt(5/3), 2.94 degrees of freedom.
    low, high = welch([1, 2, 3], [3, 5, 7])
    assert (low + high) / 2 == pytest.approx(-3)
    assert (high - low) / 2 == pytest.approx(3.218 * math.sqrt(5 / 3), rel=1e-3)
    assert welch([1, 1], [0, 0]) == (1, 1)
    assert standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / math.sqrt(3))
    assert standard_error([1.0]) is None


def test_the_pooled_spread_is_the_mean_square_within_groups():
    # Squared distances to the own mean: 1 + 1, and 1 + 1 + 4; a single value has none. 2 + 3 values less 2 means.
    found = spread([[1, 3], [2, 2, 5], [9]])
    assert found == Spread(pytest.approx(8 / 3), 3, 2)
    # t with 3 degrees of freedom at 0.975 is 3.182; the error sqrt(8/3 (1/2 + 1/3)).
    low, high = found.interval(1.0, [2, 3])
    assert ((low + high) / 2, (high - low) / 2) == pytest.approx((1.0, 3.182 * math.sqrt(20 / 9)), rel=1e-3)
    # The start has no seeds: the error is of one mean alone.
    assert found.interval(1.0, [2])[1] == pytest.approx(1.0 + 3.182 * math.sqrt(4 / 3), rel=1e-3)
    assert spread([[1.0], []]) is None


def test_a_spread_exceeds_another_by_the_f_test():
    # F with 1 and 4 degrees of freedom at 0.99 is 21.198.
    calm = Spread(1.0, 4, 4)
    assert Spread(21.3, 1, 1).exceeds(calm)
    assert not Spread(21.1, 1, 1).exceeds(calm)


def candidate(name, *rewards, prompts=None):
    mean = Mean(float(np.mean(rewards)), None, "", tuple(rewards))
    return Candidate(name, Mean(1.0, None, "", ()), mean, prompts or {}, SimpleNamespace(seeds=list(rewards)))


def test_with_two_seeds_each_the_noise_is_pooled_over_all_settings():
    a, b, c = candidate("a", 0.6, 0.7), candidate("b", 0.35, 0.45), candidate("c", 0.0, 0.1)
    # Variance 0.005 in each: error sqrt(0.005), 3 degrees of freedom (3.182) for all, 2 (4.303) for the two alone.
    pooled, alone = compare(a, b, [a, b, c]), compare(a, b)
    assert (pooled.over, pooled.spread) == ("pooled seeds", Spread(pytest.approx(0.005), 3, 3))
    assert pooled.interval == pytest.approx((0.25 - 0.225, 0.25 + 0.225), abs=1e-3)
    assert (alone.over, alone.spread) == ("seeds", None)
    assert alone.interval == pytest.approx((0.25 - 0.3043, 0.25 + 0.3043), abs=1e-3)
    # Three seeds know their own spread; a single one takes that of the others, from two degrees of freedom on.
    three = [candidate("a", 0.6, 0.65, 0.7), candidate("b", 0.3, 0.4, 0.5)]
    assert compare(*three, [*three, c]).over == "seeds"
    one = candidate("one", 0.6)
    assert compare(one, c, [one, c, b]).interval == pytest.approx(
        (0.55 - 4.303 * math.sqrt(0.0075), 0.55 + 4.303 * math.sqrt(0.0075)), abs=1e-3
    )
    assert compare(one, c, [one, c]).over == "", "one degree of freedom tells nothing"


def test_calm_settings_do_not_speak_for_a_noisy_one():
    calm = [candidate(f"c{i}", i / 10, i / 10 + 0.01) for i in range(4)]
    noisy = candidate("noisy", 0.2, 1.2)
    assert compare(noisy, calm[3], [noisy, *calm]).over == "seeds", "Welch's, of the two alone"
    assert compare(calm[3], calm[2], [noisy, *calm]).spread.groups == 5


def test_of_equals_the_best_is_seldom_called_better():
    """Ten settings, two seeds each, all alike: the luckiest stands out in no more than 5% (Hung and Fithian 2019)."""
    drawn = np.random.default_rng(0).normal(size=(400, 10, 2))
    found = [judge([candidate(f"{i}", *row) for i, row in enumerate(one)], "gold", None, False) for one in drawn]
    assert {verdict.noise.over for verdict in found} == {"pooled seeds", "seeds"}
    assert sum(verdict.noise.exceeded for verdict in found) / len(found) < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)
    assert np.mean([len(verdict.ties) for verdict in found]) > 8, "nearly all of them are said to be as good"


def test_equal_values_have_no_spread():
    assert spread([[0.1, 0.1, 0.1], [0.2, 0.2], [3.0]]) is None
    assert spread([[0.1, 0.1], [0.2, 0.4]]) == Spread(pytest.approx(0.01), 2, 2)
