"""Scores of reward models put right: numbers by hand, and what is stored and read."""

import json
import math
from pathlib import Path

import pytest

from posttrain.errors import PosttrainError
from posttrain.rewards import calibration
from posttrain.rewards.calibration import ece, fit, standardized, temperature, without_length


def test_temperature_of_a_judge_that_is_right_three_times_in_four():
    """All gaps are 2: the likeliest p is 3/4, so sigmoid(2 / T) = 3/4 and T = 2 / log 3."""
    assert temperature([2, 2, 2, -2]) == pytest.approx(2 / math.log(3), rel=1e-6)
    # Ten times the scores, ten times the temperature.
    assert temperature([20, 20, 20, -20]) == pytest.approx(20 / math.log(3), rel=1e-6)


def test_temperature_stays_finite_where_the_pairs_do_not_decide_it():
    assert temperature([1, 1, 1]) == pytest.approx(1e-3)  # all right: the surer, the likelier
    assert temperature([-1, -1, 1]) == pytest.approx(1e3)  # mostly wrong
    assert temperature([0, 0]) == 1.0


def test_expected_calibration_error_by_hand():
    """p = 0.9 for four pairs of which two are right: |0.5 - 0.9|; p = 0.6 for one, right: |1 - 0.6|, a fifth of all."""
    sure, unsure = math.log(9), math.log(1.5)
    assert ece([sure, sure, -sure, -sure, unsure]) == pytest.approx(0.8 * 0.4 + 0.2 * 0.4)
    assert ece([0, 0]) == 0.0  # a tie at p = 0.5 counts half
    assert ece([50, 50]) == pytest.approx(0.0, abs=1e-12)  # p = 1 is in the last bin


def test_the_slope_is_that_within_prompts():
    """Within each prompt the longer answer has 0.5 more per token; the second prompt's are 100 long, and worse."""
    scores, lengths = [[2.0, 1.0], [-6.0, -4.0]], [[4, 2], [100, 104]]
    found = fit(scores, lengths, [0, 1], "pairs")
    assert found.slope == pytest.approx(0.5)
    assert found.correlation == pytest.approx(1.0)
    assert found.length == pytest.approx(52.5)
    assert (found.raw.mean, found.raw.accuracy) == (pytest.approx(-1.75), 0.5)
    # Without the slope the answers of a prompt are equal; the mean stays.
    assert found.residual.mean == pytest.approx(-1.75)
    assert found.residual.accuracy == 0.5
    assert without_length([2.0, 1.0], [4, 2], 0.5, 52.5) == pytest.approx([26.25, 26.25])


def test_equal_lengths_have_no_slope():
    found = fit([[1.0, 0.0], [2.0, 1.0]], [[3, 3], [9, 9]], [0, 1], "pairs")
    assert (found.slope, found.correlation) == (0.0, 0.0)
    assert found.residual == found.raw


def test_calibration_is_measured_on_pairs_of_other_prompts():
    """Even prompts are always right by 1, odd ones wrong by 1: each half's temperature is wrong for the other half."""
    scores = [[1.0, 0.0], [0.0, 1.0]] * 4
    raw = fit(scores, [[1, 1]] * 8, list(range(8)), "pairs").raw
    assert raw.accuracy == 0.5
    assert raw.ece_before == pytest.approx(abs(0.5 - 1 / (1 + math.exp(-1))))
    # T = 1000 for the right ones (p = 0.5), T = 0.001 for the wrong ones (p = 1).
    assert raw.ece_after == pytest.approx(0.5 * 0.5 + 0.5 * 1.0, abs=1e-3)


def test_scores_are_adjusted():
    found = fit([[2.0, 1.0], [-6.0, -4.0]], [[4, 2], [100, 104]], [0, 1], "pairs")
    spread = math.sqrt((3.75**2 + 2.75**2 + 4.25**2 + 2.25**2) / 4)
    assert found.adjust([2.0], [4], "zscore", None) == pytest.approx([3.75 / spread])
    assert found.adjust([2.0], [4], "temperature", None) == pytest.approx([2.0 / found.raw.temperature])
    assert found.adjust([2.0], [4], "none", "fitted") == pytest.approx([26.25])
    assert standardized([1.0, 3.0]) == pytest.approx([-1.0, 1.0])
    assert standardized([0.1, 0.1, 0.1]) == [0.0, 0.0, 0.0]


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path):
    found = fit([[2.0, 1.0], [-6.0, -4.0]], [[4, 2], [100, 104]], [0, 1], "pairs")
    found.write(tmp_path)
    assert calibration.read(str(tmp_path), "reward.rm") == found
    (tmp_path / "calibration.json").write_text(json.dumps({"pairs": 3}))
    with pytest.raises(PosttrainError, match=r"reward.rm: .* is no calibration"):
        calibration.read(str(tmp_path), "reward.rm")
    with pytest.raises(PosttrainError, match=r"is not there; it is measured by job=evaluate"):
        calibration.read(str(tmp_path / "other"), "reward.rm")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"scale": "minmax"}, "args.scale=minmax: choose from none, zscore, batch, temperature"),
        ({"length_penalty": "fit"}, "args.length_penalty=fit: expected fitted, or a number"),
        ({"length_penalty": float("nan")}, "args.length_penalty=nan: expected fitted, or a number"),
        ({"batch_size": 0}, "args.batch_size=0: expected a whole number of at least 1"),
        ({"dtype": "fp16"}, "args.dtype=fp16: choose from auto, float32, bfloat16, float16"),
        ({"length_penalty": 0.1, "scale": "zscore"}, "scale=zscore was measured without it"),
        ({"calibration": "x"}, "args.calibration: only read for scale=zscore"),
    ],
)
def test_settings_that_mean_nothing(args, said):
    [error] = calibration.check(args, "args")
    assert said in error


def test_settings_that_do():
    for args in ({}, {"scale": "batch", "length_penalty": 0.1}, {"length_penalty": "fitted", "calibration": "x"}):
        assert calibration.check(args, "args") == []
