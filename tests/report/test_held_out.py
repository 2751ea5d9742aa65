"""The report of runs that have no reward: held-out accuracy, margin and loss, with intervals over rows and seeds."""

import json

import pytest

from posttrain.report import maths, page, tables
from posttrain.report.__main__ import main
from posttrain.report.compare import compare
from posttrain.report.runs import find
from tests.helpers.report_runs import write_held_out, write_run

ACCURACY = "eval_rewards/accuracies"


def dpo(accuracy, margin=0.5, loss=0.6):
    """Before training every pair ties, and TRL logs an accuracy of 0."""
    return {ACCURACY: (0.0, accuracy), "eval_rewards/margins": (0.0, margin), "eval_loss": (0.69, loss)}


def as_json(capsys, *args):
    assert main(["--format", "json", *map(str, args)]) == 0
    return json.loads(capsys.readouterr().out)


def test_preference_accuracy_is_compared_with_an_interval_over_rows(tmp_path, capsys):
    write_held_out(tmp_path / "a", "dpo", dpo(0.8), args={"beta": 0.1})
    write_held_out(tmp_path / "b", "dpo", dpo(0.6), args={"beta": 0.5})
    found = as_json(capsys, tmp_path)
    assert found["metric"] == ACCURACY
    (verdict,) = found["verdicts"]
    assert (verdict["best"], verdict["next"], verdict["over"]) == ("dpo beta=0.1", "dpo beta=0.5", "rows")
    assert verdict["interval"] == pytest.approx(maths.newcombe((0.8, 100), (0.6, 100)))
    assert verdict["sentence"].startswith(
        "Held out, dpo beta=0.1 (seed 1) is best: preference accuracy (implicit reward) 0.800 ± 0.040, 0.200 more than"
    )
    assert "larger than the noise over the held-out rows" in verdict["sentence"]
    assert found["start"] == {}, "0 before training is a tie, no accuracy"
    error = found["groups"][0]["metrics"][ACCURACY]
    assert (error["over"], error["error"]) == ("rows", pytest.approx(0.04))  # sqrt(0.8 * 0.2 / 100)


def test_the_interval_of_two_shares_is_newcombes():
    # Newcombe 1998, table II, row a: 56/70 against 48/80, method 10.
    assert maths.newcombe((56 / 70, 70), (48 / 80, 80)) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_seeds_come_before_rows(tmp_path, capsys):
    for beta, values in ((0.1, (0.80, 0.82, 0.81)), (0.5, (0.60, 0.62, 0.61))):
        for seed, value in enumerate(values):
            write_held_out(tmp_path / f"{beta}-{seed}", "dpo", dpo(value), args={"beta": beta}, seed=seed)
    (verdict,) = as_json(capsys, tmp_path)["verdicts"]
    assert verdict["over"] == "seeds"
    assert "larger than the noise between seeds" in verdict["sentence"]


def test_a_reward_model_by_its_accuracy_and_sft_by_its_loss_against_the_start(tmp_path, capsys):
    write_held_out(tmp_path / "r" / "a", "reward", {"eval_accuracy": (0.5, 0.7), "eval_loss": (0.7, 0.6)})
    found = as_json(capsys, tmp_path / "r")
    assert found["metric"] == "eval_accuracy"
    assert "0.200 more than the starting policy" in found["verdicts"][0]["sentence"]
    write_held_out(tmp_path / "s" / "a", "sft", {"eval_loss": (2.0, 1.5), "eval_mean_token_accuracy": (0.3, 0.4)})
    found = as_json(capsys, tmp_path / "s")
    assert (found["metric"], found["better"]) == ("eval_loss", "lower")
    sentence = found["verdicts"][0]["sentence"]
    assert "held-out loss 1.500, 0.500 less than the starting policy (2.000)" in sentence
    assert "One seed does not show whether that is more than noise: train each with two seeds or more" in sentence


def test_the_metric_is_the_one_that_most_runs_are_judged_by(tmp_path, capsys):
    """All of them log a loss and a token accuracy, which tell least of preferences."""
    common = {"eval_loss": (2.0, 1.5), "eval_mean_token_accuracy": (0.3, 0.4)}
    write_held_out(tmp_path / "d", "dpo", {**common, **dpo(0.8)})
    write_held_out(tmp_path / "a", "sft", common, args={"learning_rate": 1e-4})
    assert as_json(capsys, tmp_path)["metric"] == ACCURACY
    write_held_out(tmp_path / "b", "sft", common, args={"learning_rate": 2e-4})
    assert as_json(capsys, tmp_path)["metric"] == "eval_loss"


def test_losses_of_other_trainers_and_other_rows_are_not_compared(tmp_path, capsys):
    write_held_out(tmp_path / "a", "dpo", dpo(0.8), args={"beta": 0.1})
    write_held_out(tmp_path / "b", "dpo", dpo(0.7), args={"beta": 0.5})
    write_held_out(tmp_path / "c", "dpo", dpo(0.9), rows=50, args={"beta": 0.9})
    write_held_out(tmp_path / "s", "sft", {"eval_loss": (2.0, 0.1)})
    found = as_json(capsys, tmp_path, "--metric", "eval_loss")
    notes = "\n".join(found["notes"])
    assert "sft: eval_loss of another trainer is not on the same scale" in notes
    assert "dpo beta=0.9: measured on other held-out rows" in notes
    assert {v["best"] for v in found["verdicts"]} <= {"dpo beta=0.1", "dpo beta=0.5"}
    assert main([str(tmp_path), "--metric", "eval_nothing"]) == 1
    assert ACCURACY in capsys.readouterr().err


def test_with_kl_the_picture_is_accuracy_against_kl(tmp_path, capsys):
    for name, beta, accuracy in (("a", 0.1, 0.8), ("b", 0.5, 0.6)):
        folder = write_held_out(tmp_path / name, "dpo", dpo(accuracy), args={"beta": beta})
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 10, "probe/kl": 2.0 if beta == 0.1 else 1.0}) + "\n")
    assert main([str(tmp_path), "--out", str(tmp_path / "out"), "--kl-budget", "1"]) == 0
    assert "With at most 1 nats of KL, dpo beta=0.5 (seed 1) is best" in " ".join(capsys.readouterr().out.split())
    text = (tmp_path / "out" / "index.html").read_text()
    assert (tmp_path / "out" / "frontier.png").is_file()
    assert "KL 2.000 nats" in text
    assert "preference accuracy (implicit reward)" in text
    assert "Preference accuracy (implicit reward) against KL" in text
    assert ">Reward against KL<" not in text
    assert "so the picture has preference accuracy (implicit reward) against KL" in text


def test_one_run_is_not_called_the_best(tmp_path, capsys):
    write_held_out(tmp_path / "a", "dpo", dpo(0.8), args={"beta": 0.1})
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "is the only one: preference accuracy (implicit reward) 0.800" in said
    assert "is best" not in said


def test_gold_still_comes_first(tmp_path):
    write_run(tmp_path / "a", "dpo", [(0, 0.0, 0.1), (9, 1.0, 0.4)])
    write_held_out(tmp_path / "b", "dpo", dpo(0.9), args={"beta": 0.7})
    comparison = compare(find([tmp_path]), None, [], None)
    assert comparison.metric == "probe/gold/mood"
    assert comparison.held_out[0] == ACCURACY


def test_changes_are_words_and_what_shares_little_is_new():
    pieces = page.changes("The cat sat on the mat.", "The dog sat on the mat.")
    assert pieces == [("same", "The "), ("gone", "cat "), ("new", "dog "), ("same", "sat on the mat.")]
    assert page.changes("one two three four", "quite another answer here") == [("new", "quite another answer here")]
    assert "".join(text for kind, text in page.changes("a b  c", "a  b c d") if kind != "gone") == "a  b c d"


def test_a_loss_beside_a_reward_is_left_out(tmp_path):
    write_held_out(tmp_path / "a", "dpo", dpo(0.8))
    write_held_out(tmp_path / "b", "grpo", {"eval_loss": (0.0, 0.01), "eval_reward": (0.1, 0.7)})
    head, *lines = tables.held_out(compare(find([tmp_path]), None, [], None))
    assert {line[0]: line[head.index("held-out loss")] for line in lines}.get("grpo", "") == ""
    assert any("0.600" in line for line in lines), "that of DPO stays"


def test_seeds_that_are_all_alike_tell_nothing_of_the_noise(tmp_path, capsys):
    for beta, value in ((0.1, 0.75), (0.5, 0.8125)):
        for seed in (1, 2):
            write_held_out(tmp_path / f"{beta}-{seed}", "dpo", dpo(value), rows=16, args={"beta": beta}, seed=seed)
    (verdict,) = as_json(capsys, tmp_path)["verdicts"]
    assert verdict["over"] == "rows"
    assert verdict["interval"] == pytest.approx(maths.newcombe((0.8125, 16), (0.75, 16)))
