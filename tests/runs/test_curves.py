"""The picture of a run's curves: which panels there are, and what is a point and what a line."""

import json

import pytest

from posttrain.runs import curves, metrics, summary
from posttrain.runs.directory import RunDirectory


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_panels_have_reward_and_kl_whatever_they_are_called(tmp_path):
    rows = [{"step": 0, "probe/kl": 0.0, "probe/gold/mood": 0.1, "eval_loss": 0.7}, {"step": 1, "loss": 0.6, "kl": 0.1}]
    panels = curves.series(
        write(tmp_path / "metrics.jsonl", [*rows, {"step": 9, "probe/kl": 2.0, "probe/gold/mood": 0.4}])
    )
    assert panels["KL to the reference (nats per sequence)"] == {"probe/kl": [(0, 0.0), (9, 2.0)]}
    assert panels["KL as the trainer logs it"] == {"kl": [(1, 0.1)]}
    assert panels["rewards of held-out samples"] == {"probe/gold/mood": [(0, 0.1), (9, 0.4)]}
    assert "value function: explained variance" not in panels


def test_before_and_after_are_points_and_many_measurements_a_line(tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, axis = plt.subplots()
    curves._line(axis, "probe/kl", [(0, 0.0), (9, 2.0)], "held out")
    curves._line(axis, "eval_loss", [(i, 0.5) for i in range(6)], "held out")
    curves._line(axis, "loss", [(i, 0.5) for i in range(30)], "training")
    styles = [(line.get_linestyle(), line.get_marker()) for line in axis.lines]
    assert styles[:2] == [("None", "o"), (":", "o")]
    assert styles[2][0] == "-"
    plt.close("all")


def test_a_legend_has_words_and_an_axis_no_rounding_errors():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    accuracies = ("rewards/accuracies", "mean_token_accuracy", "eval_rewards/accuracies", "eval_mean_token_accuracy")
    assert [curves._label(key, accuracies) for key in accuracies] == [
        *("preferences", "tokens", "held out: preferences", "held out: tokens")
    ]
    assert [curves._label(key, ("loss", "eval_loss")) for key in ("loss", "eval_loss")] == ["training", "held out"]
    _, axis = plt.subplots()
    axis.plot([0, 1, 2], [0.0, 1e-17, 0.0])
    curves.widen(axis)
    assert axis.get_ylim() == pytest.approx((-0.05, 0.05))
    plt.close("all")


@pytest.mark.curves
def test_the_picture_is_written(tmp_path):
    metrics = write(tmp_path / "metrics.jsonl", [{"step": 5, "loss": 1.0}])
    curves.draw_curves(metrics, tmp_path / "curves.png", "run")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    curves.draw_curves(write(tmp_path / "none.jsonl", []), tmp_path / "none.png", "run")
    assert not (tmp_path / "none.png").exists()


def test_before_and_after_has_no_loss_beside_a_reward_and_says_what_is_a_reward(tmp_path):
    rows = [
        {"step": step, "eval_loss": 0.1, "eval_reward": step, "probe/rewards/brevity": 0.2, "probe/gold/a_b": 0.3}
        for step in (0, 1)
    ]
    found = metrics.before_and_after(write(tmp_path / "metrics.jsonl", rows))
    assert [name for name, *_ in found] == ["held-out reward", "gold reward: a b", "reward: brevity"]
    del rows[0]["eval_reward"], rows[1]["eval_reward"]
    found = metrics.before_and_after(write(tmp_path / "metrics.jsonl", rows))
    assert found[0] == ("held-out loss", "0.100", "0.100")


def test_the_accuracy_of_a_policy_that_is_its_reference_is_in_no_picture(tmp_path):
    """Curves and report read the same points; every pair ties at the start, and TRL logs 0."""
    logged = [{"step": step, "eval_rewards/accuracies": step / 4, "eval_rewards/margins": step} for step in (0, 4)]
    points = metrics.by_step(write(tmp_path / "metrics.jsonl", logged))
    assert "eval_rewards/accuracies" not in points[0]
    assert points[4]["eval_rewards/accuracies"] == 1
    assert curves.series(tmp_path / "metrics.jsonl")["accuracy"] == {"eval_rewards/accuracies": [(4, 1.0)]}


def test_without_a_measurement_before_training_there_is_no_column_of_it(tmp_path):
    rows = [{"step": step, "eval_loss": 0.5} for step in (0, 9)]
    run = RunDirectory(tmp_path)
    for logged, names in ((rows[1:], ["metric", "after"]), (rows, ["metric", "before", "after"])):
        write(run.metrics, logged)
        table = summary.before_after(run)
        assert [column.header for column in table.columns] == names
        assert table.title == f"{run.name}: held out, {'before and ' * (len(names) == 3)}after"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((-2.16e-7, "0.000"), (4.8e-5, "0.000"), (-0.000706, "-0.0007"), (0.5, "0.500"), (20.57, "20.6")),
        *((2048.4, "2,048"), (1.2e7, "1.2e+07"), (float("nan"), "nan")),
    ],
)
def test_a_number_shows_no_rounding_error_and_no_exponent(value, text):
    assert metrics.format_number(value) == text


def test_points_at_one_place_are_all_seen():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, axis = plt.subplots()
    for key in ("reward", "eval_reward", "probe/reward"):
        curves._line(axis, key, [(0, 1.0), (4, 1.0)], key)
    sizes = [line.get_markersize() for line in axis.lines]
    assert sizes == sorted(set(sizes), reverse=True)
    plt.close("all")
