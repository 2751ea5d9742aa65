"""Numbers of the report against hand-worked ones: front, best-of-n, fits, intervals."""

import itertools
import math

import numpy as np
import pytest

from posttrain.report.maths import Fit, best_of_n, best_of_n_kl, fit, pareto_front, standard_error, welch


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
