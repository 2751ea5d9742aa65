"""Metrics over items, and how often their intervals hold the truth."""

import math

import numpy as np
import pytest

from posttrain.probe.heldout import Answer, groups, implicit_metrics, likelihood_metrics, preference_metrics, wins
from posttrain.probe.intervals import difference, exponential, interval, mean, ratio

PAIRS = [{"prompt": "p", "chosen": "c", "rejected": "r"}] * 3


def test_the_values_by_hand():
    assert mean([1.0, None, 4.0], [0, 1, 2]).value == 2.5
    assert mean([1.0, None, 4.0], [0, 1, 2]).count == 2
    loss = ratio([6.0, 2.0], [3, 1], [0, 1])
    assert loss.value == 2.0, "a mean over tokens: 8 / 4, not the mean of two means"
    assert exponential(loss).value == pytest.approx(np.exp(2))
    assert difference(mean([1.0, 3.0], [0, 1]), mean([0.0, 1.0], [0, 1])).value == 1.5


@pytest.mark.parametrize(
    ("draw", "truth", "at_least"),
    [
        (lambda rng: rng.normal(size=100), 0.0, 0.92),
        (lambda rng: rng.exponential(size=100), 1.0, 0.90),
        (lambda rng: (rng.random(100) < 0.8).astype(float), 0.8, 0.92),
    ],
    ids=["normal", "exponential", "coin"],
)
def test_a_95_interval_covers_the_truth_about_95_times_of_100(draw, truth, at_least):
    """Of 400 samples: two standard errors of a share of 0.95 are 0.022; skewed samples are known to fall short."""
    rng, hits = np.random.default_rng(0), 0
    for seed in range(400):
        values = draw(rng).tolist()
        low, high = interval(mean(values, range(len(values))), 0.95, 500, seed)
        hits += low <= truth <= high
    assert at_least <= hits / 400 <= 0.98


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(3).normal(size=400).tolist()
    low, high = interval(mean(values, range(400)), 0.95, 4000)
    half = 1.96 * np.std(values) / 20
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.01)


def test_a_skewed_metric_has_an_interval_that_is_longer_on_the_skewed_side():
    values = [0.0] * 38 + [10.0, 20.0]
    low, high = interval(mean(values, range(40)), 0.95, 4000)
    assert high - 0.75 > 2 * (0.75 - low)


def test_answers_to_one_prompt_are_no_independent_items():
    """Four copies of each item leave the interval as it is; as items of their own they would halve it."""
    values = np.random.default_rng(1).normal(size=50).tolist()
    once = interval(mean(values, range(50)), 0.95, 2000)
    copies = interval(mean(values * 4, list(range(50)) * 4), 0.95, 2000)
    apart = interval(mean(values * 4, range(200)), 0.95, 2000)
    assert copies == pytest.approx(once)
    assert (apart[1] - apart[0]) / (once[1] - once[0]) == pytest.approx(0.5, abs=0.1)


def test_pairing_cancels_what_is_hard_for_both():
    rng = np.random.default_rng(2)
    hard = rng.normal(size=100) * 10
    first, second = mean((hard + 1).tolist(), range(100)), mean(hard.tolist(), range(100))
    assert interval(difference(first, second), 0.95, 500) == pytest.approx((1, 1))
    with pytest.raises(ValueError, match="the same items"):
        difference(first, mean([1.0], [0]))


def test_too_few_items_have_no_interval():
    assert interval(mean([1.0, 2.0], [0, 0]), 0.95, 100) is None
    assert interval(mean([None, 1.0], [0, 1]), 0.95, 100) is None
    assert interval(mean([1.0, 1.0, 1.0], [0, 1, 2]), 0.95, 100) == (1.0, 1.0)


def test_wins_ties_and_what_has_no_score():
    found = wins([1.0, 2.0, 3.0, None, 1.0], [0.0, 2.0, 4.0, 1.0, None])
    assert found == [1.0, 0.5, 0.0, None, None]
    assert mean(found, range(5)).value == 0.5
    assert wins([1.0, 2.0], [0.0, 2.0], sign=-1.0) == [0.0, 0.5], "where less is better"


def test_preference_metrics_by_hand():
    found = preference_metrics([[2.0, 1.0], [1.0, 1.0], [0.0, 4.0]], [0, 1, 2])
    assert found["accuracy"].value == 0.5
    assert found["margin"].value == pytest.approx((1 + 0 - 4) / 3)


def test_log_likelihoods_are_compared_per_token_and_implicit_rewards_per_answer():
    policy = [[Answer(-6.0, 6), Answer(-3.0, 2)], [Answer(-4.0, 2), Answer(-2.0, 2)], [Answer(-2.0, 2), Answer(0.0, 0)]]
    found = likelihood_metrics(PAIRS, policy)
    # -1 against -1.5, -2 against -1; the third has lost its rejected answer to max_length.
    assert found["likelihood_accuracy"].value == 0.5
    assert found["likelihood_margin"].value == pytest.approx((0.5 - 1) / 2)
    assert found["likelihood_accuracy"].count == 2
    reference = [
        [Answer(-7.0, 6), Answer(-5.0, 2)],
        [Answer(-5.0, 2), Answer(-2.0, 2)],
        [Answer(-2.0, 2), Answer(0, 0)],
    ]
    implicit = implicit_metrics(PAIRS, policy, reference, beta=0.5)
    # Log-ratios +1 against +2, +1 against 0.
    assert implicit["implicit_accuracy"].value == 0.5
    assert implicit["implicit_margin"].value == pytest.approx(0.5 * (-1 + 1) / 2)


def test_labelled_rows_have_a_margin_between_good_and_bad():
    rows = [{"prompt": str(n), "completion": "c", "label": good} for n, good in enumerate([True, True, False])]
    found = likelihood_metrics(rows, [[Answer(-2.0, 2)], [Answer(-6.0, 2)], [Answer(-9.0, 3)]])
    assert found["likelihood_margin"].value == pytest.approx((-1 - 3) / 2 + 3)
    assert found.keys() == {"likelihood_margin"}


def test_rows_of_one_prompt_are_one_group():
    assert groups([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}, {"text": "c"}, {"text": "c"}]) == [0, 1, 0, 2, 3]


def test_infinite_scores_win_and_tie_as_others_do():
    infinite = math.inf
    assert wins([-infinite, infinite, infinite, -infinite], [-infinite, infinite, 1.0, 1.0]) == [0.5, 0.5, 1.0, 0.0]
    assert wins([-infinite, -infinite], [-infinite, 1.0], sign=-1.0) == [0.5, 1.0]
    assert preference_metrics([[-infinite, -infinite], [1.0, -infinite]], [0, 1])["accuracy"].value == 0.75
