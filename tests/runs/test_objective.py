"""What a sweep optimises: a final value, the best under a KL budget, or several numbers."""

import json
import math

import pytest

from posttrain.config import objective
from posttrain.config.objective import Objective, parse
from posttrain.config.schema import ProbeConfig, RewardConfig, Run
from posttrain.errors import PosttrainError
from posttrain.runs.directory import RunDirectory
from posttrain.runs.evaluation_titles import EVALUATION_TITLES
from posttrain.runs.objective_value import from_metrics, of_run


@pytest.fixture
def directory(tmp_path):
    """Gold rises to KL 4 and falls after; the probe's two lines of a step belong together."""
    points = [
        {"step": 0, "probe/kl": 0.0, "probe/gold/rm": 0.1},
        {"step": 10, "probe/kl": 4.0, "probe/self_bleu": 0.4},
        {"step": 10, "probe/gold/rm": 0.7},
        {"step": 15, "probe/gold/rm": 9.0},
        {"step": 20, "probe/kl": 9.0, "probe/gold/rm": 0.5, "probe/self_bleu": 0.9},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in points))
    run = RunDirectory(tmp_path)
    run.write({"status": "finished", "metrics": {"probe/kl": 9.0, "probe/gold/rm": 0.5, "probe/self_bleu": 0.9}})
    return run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("probe/gold/rm", 0.5),
        ("probe/gold/rm at kl 5", 0.7),
        ("probe/gold/rm at kl<=5", 0.7),
        ("probe/gold/rm at probe/kl <= 3.9", 0.1),
        ("probe/gold/rm at kl 1e1", 0.7),
        ("probe/self_bleu at kl 10", 0.4),
    ],
)
def test_the_number_of_a_run(directory, text, expected):
    assert from_metrics(text, lambda one: of_run(one, directory)) == expected


def test_of_an_unwanted_reward_the_least_is_best(directory):
    gold = {"rm": {"function": "f", "weight": -1.0}}
    (directory.path / "config.yaml").write_text(json.dumps({"probe": {"gold": gold}, "reward": {}}))
    assert of_run(*parse("probe/gold/rm at kl 10"), directory) == 0.1
    (directory.path / "config.yaml").write_text(json.dumps({"probe": {"rewards": gold}, "reward": gold}))
    assert of_run(*parse("probe/gold/rm at kl 10"), directory) == 0.7


def test_what_less_is_better_of():
    lower = ("probe/kl", "eval_loss", "probe/nll/wiki", "probe/gold_drop/rm", "probe/refusals/harmless")
    higher = ("probe/gold/loss", "probe/rewards/repetition", "probe/refusals/harmful", "probe/distinct_2")
    assert [objective.lower_is_better(metric) for metric in (*lower, *higher)] == [True] * 5 + [False] * 4


def test_what_no_run_will_measure_is_said_before_it():
    def said(text, prompts=8):
        entry = RewardConfig(function="posttrain.rewards.text.length")
        run = Run(
            objective=text,
            reward={"short": entry, "my-own": entry},
            probe=ProbeConfig(prompts=prompts, gold={"rm": entry}),
        )
        run.trainer.kind = "grpo"
        return objective.unmeasured(run)

    assert said(["probe/gold/rm at kl 5", "probe/rewards/short", "probe/kl", "eval_loss"]) == []
    there = "there are probe/gold/rm, probe/rewards/short, probe/rewards/my-own"
    assert said("probe/gold/short at kl 5") == [f"objective=probe/gold/short at kl 5: no such reward; {there}"]
    for text in ("probe/kl", "eval_loss at kl 5"):
        assert said(text, 0) == [f"objective={text}: there is no probe in this run; set probe.prompts"]
    assert (
        said("eval_loss", 0)
        == said("rewards/short/mean")
        == said("eval_rewards/my-own/std")
        == said("what is at fault", 0)
        == said(None, 0)
        == []
    )


def test_start_and_end_are_evaluated_without_an_eval_strategy():
    run = Run(objective="eval_reward")
    run.trainer.kind, run.trainer.args = "ppo", {"eval_strategy": "no"}
    assert objective.unmeasured(run) == []
    run.trainer.args["eval_on_start"] = False
    (error,) = objective.unmeasured(run)
    assert error.startswith("objective=eval_reward: nothing is evaluated with eval_strategy=no and eval_on_start=false")


def test_the_metrics_of_other_jobs_are_those_they_measure():
    known = set(objective.OF_JOBS["evaluate"].split())
    assert known == {*EVALUATION_TITLES, "sampled", "greedy", "against", "difference"}
    run = Run(job="sample", objective=["score", "rewards/length", "scores"])
    run.trainer.kind = "dpo"
    (error,) = objective.unmeasured(run)
    assert error == "objective=scores: job=sample does not measure it; did you mean score or kept_score?"
    run = Run(job="evaluate", objective=["sampled/score", "perplexity", "nope"])
    run.trainer.kind = "dpo"
    (error,) = objective.unmeasured(run)
    assert error.startswith("objective=nope: job=evaluate does not measure it; known here: loss_per_token")
    run.evaluate.tasks = ["arc"]
    assert objective.unmeasured(run) == []


def test_two_objectives_are_two_numbers(directory):
    both = from_metrics(["probe/gold/rm at kl 5", "probe/kl"], lambda one: of_run(one, directory))
    assert both == (0.7, 9.0)
    assert from_metrics(None, lambda one: math.nan) is None


def test_what_cannot_be_read_is_said(directory):
    assert parse("probe/gold/rm at kl 5") == [Objective("probe/gold/rm at kl 5", "probe/gold/rm", 5.0)]
    (error,) = objective.check("probe/gold/rm at 5")
    assert error.startswith("objective=probe/gold/rm at 5: expected METRIC, or METRIC at kl NUMBER")
    assert objective.check([1]) == ["objective=[1]: expected a metric, or a list of them, such as probe/rewards/NAME"]
    with pytest.raises(PosttrainError, match=r"not measured; there are probe/gold/rm, probe/kl, probe/self_bleu"):
        of_run(*parse("probe/gold/r at kl 5"), directory)


def test_a_budget_needs_points_with_kl(directory):
    (directory.path / "metrics.jsonl").write_text('{"step": 1, "probe/gold/rm": 1.0}\n')
    with pytest.raises(PosttrainError, match=r"never logged together with a probe/kl of at most 5.*probe.during=true"):
        of_run(*parse("probe/gold/rm at kl 5"), directory)
