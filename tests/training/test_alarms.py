"""Each alarm by rows that must raise it and rows that must not; and two runs that are really stopped."""

import json
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from posttrain.config.alarms import AlarmsConfig, setting
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.runs.directory import RunDirectory
from posttrain.training import alarms, measured_alarms
from posttrain.training.alarms import AlarmDetector
from tests.helpers.runs import SMALL, compose, rows, weights
from tests.helpers.wandb_run import finished_records

START = {"step": 0, "probe/length": 10.0, "probe/entropy": 2.0, "probe/distinct_2": 0.8, "probe/reward": 0.1}
NORMS = [{"step": i, "grad_norm": 1.0 + i % 3} for i in range(12)]


def raised(rows, **settings):
    """(name, step) of the alarms that the rows raise, with the settings of each alarm that differ."""
    config = AlarmsConfig()
    for name, values in settings.items():
        for key, value in values.items():
            setattr(getattr(config, name), key, value)
    watch = AlarmDetector(config)
    return [(alarm.name, alarm.step) for row in rows for alarm in watch.check_row(row)]


def gold(step, reward, drop, stderr):
    row = {"step": step, "probe/length": 10.0, "probe/reward": reward}
    return row | {"probe/gold_drop/g": drop, "probe/gold_drop_stderr/g": stderr}


CASES = {
    "sampling": (
        [{"step": 4, "sampling/sampling_logp_difference/mean": 0.3}],
        [{"step": 4, "sampling/sampling_logp_difference/mean": 0.02}, {"step": 5, "loss": 1.0}],
        {},
    ),
    "non_finite": ([{"step": 4, "loss": math.nan}], [{"step": 4, "loss": 9e9}], {}),
    "non_finite, reward": ([{"step": 4, "loss": 0, "reward": math.inf}], [{"step": 4, "loss": 0, "reward": -1e9}], {}),
    "gradient, exploding": ([*NORMS, {"step": 4, "grad_norm": 300.0}], [*NORMS, {"step": 4, "grad_norm": 150.0}], {}),
    "gradient, vanishing": (
        [*NORMS, *[{"step": 2 + i, "grad_norm": 0.0} for i in range(3)]],
        [*NORMS, *[{"step": 2 + i, "grad_norm": 0.0} for i in range(2)], *NORMS],
        {},
    ),
    "kl": ([{"step": 4, "probe/kl": 5.1}], [{"step": 4, "probe/kl": 4.9}], {"kl": {"above": 5.0}}),
    "kl, of a rollout": ([{"step": 4, "objective/kl": 5.1}], [{"step": 4, "kl": 5.1}], {"kl": {"above": 5.0}}),
    "forgetting": (
        [{"step": 4, "probe/forgetting/wiki": 0.1, "probe/forgetting/code": 0.21}],
        [{"step": 4, "probe/forgetting/wiki": 0.19, "probe/forgetting/code": -3.0}],
        {},
    ),
    "collapse": (
        [START, {**START, "step": 4, "probe/entropy": 0.49}],
        [START, {**START, "step": 4, "probe/entropy": 0.51, "probe/distinct_2": 0.3}],
        {},
    ),
    "collapse, diversity": ([START, {**START, "step": 4, "probe/distinct_2": 0.19}], [START, START], {}),
    "length": (
        [START, {**START, "step": 4, "probe/length": 15.0, "probe/length_correlation": 0.8}],
        [
            START,
            {**START, "step": 4, "probe/length": 14.0, "probe/length_correlation": 0.8},  # has hardly grown
            {**START, "step": 4, "probe/length": 20.0, "probe/length_correlation": 0.7},  # R² 0.49
            {**START, "step": 4, "probe/length": 20.0, "probe/length_correlation": -0.9},  # short ones are better
        ],
        {},
    ),
    "length, all are cut": (
        [{**START, "probe/ended": 0.9}, {**START, "step": 4, "probe/length": 24.0, "probe/ended": 0.0}],
        [
            {**START, "probe/ended": 0.9},
            {**START, "step": 2, "probe/length": 24.0, "probe/ended": 0.5},  # most still end
            {**START, "step": 4, "probe/length": 14.0, "probe/ended": 0.1},  # has hardly grown
        ],
        {},
    ),
    "over_optimisation": (
        [gold(0, 0.1, 0.0, 0.0), gold(2, 0.2, 0.0, 0.0), gold(4, 0.3, 0.05, 0.02)],
        [
            gold(0, 0.1, 0.0, 0.0),
            gold(2, 0.3, 0.0, 0.0),
            gold(3, 0.2, 0.05, 0.02),  # the proxy has fallen as well
            gold(4, 0.4, 0.05, 0.03),  # within the noise
        ],
        {},
    ),
    "over_optimisation, by DPO's margin": (
        # Nothing is logged before the first step: the margin counts from where it was first seen.
        [{"step": 0, "probe/gold_drop/g": 0.0}, {"step": 1, "rewards/margins": 0.0},
         {"step": 4, "rewards/margins": 1.0}, {"step": 4, "probe/gold_drop/g": 0.5, "probe/gold_drop_stderr/g": 0.1}],
        [{"step": 0, "probe/gold_drop/g": 0.0}, {"step": 1, "rewards/margins": 0.0},
         {"step": 4, "rewards/margins": -1.0}, {"step": 4, "probe/gold_drop/g": 0.5, "probe/gold_drop_stderr/g": 0.1}],
        {},
    ),
    "over_optimisation, one prompt has no error": (
        [gold(0, 0.1, 0.0, 0.0), gold(4, 0.3, 0.5, 0.1)],
        [gold(0, 0.1, 0.0, 0.0), {"step": 4, "probe/reward": 0.3, "probe/gold_drop/g": 0.5}],
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_alarm_rings_when_it_must_and_only_then(case):
    bad, good, settings = CASES[case]
    name = case.split(",")[0]
    assert raised(bad, **settings) == [(name, 4)]
    assert raised(good, **settings) == []
    assert raised(bad, **{name: {**settings.get(name, {}), "action": "off"}}) == []


def test_the_luckiest_of_many_measurements_is_no_over_optimisation():
    """Three standard errors are much for two measurements, and what chance gives among twenty."""
    late = gold(20, 3.0, 0.3, 0.1)
    assert raised([gold(0, 0.0, 0.0, 0.0), late]) == [("over_optimisation", 20)]
    best = [gold(i, i / 10, 0.0, 0.0) for i in range(19)]
    assert raised([*best, late]) == []
    assert raised([*best, gold(20, 3.0, 0.37, 0.1)]) == [("over_optimisation", 20)]
    # P(z > 2) = 0.02275; among 3 and 20 measurements a 3rd and a 190th of it.
    assert [measured_alarms.corrected_threshold(2.0, m) for m in (1, 2, 3, 20)] == pytest.approx(
        [2, 2, 2.4291, 3.6738], abs=1e-3
    )
    assert measured_alarms.corrected_threshold(50.0, 20) == 50


def test_an_alarm_rings_once_and_again_after_it_was_clear():
    kl = [{"step": i, "probe/kl": value} for i, value in enumerate([6.0, 7.0, 1.0, 6.0])]
    assert raised(kl, kl={"above": 5.0}) == [("kl", 0), ("kl", 3)]


def test_messages_hold_the_number_and_the_fix():
    config = AlarmsConfig()
    config.kl.above = 5.0
    (alarm,) = AlarmDetector(config).check_row({"step": 4, "probe/kl": 6.25})
    assert alarm.message.startswith("KL to the reference is 6.25 nats per answer, beyond the budget of 5; raise ")
    assert (alarm.value, alarm.action) == (6.25, "warn")


def test_with_float16_a_single_overflow_is_no_alarm():
    watch = AlarmDetector(AlarmsConfig())
    watch.float16 = True
    found = [watch.check_row({"step": i, "loss": value}) for i, value in enumerate([math.inf, 1.0, *[math.nan] * 3])]
    assert [len(alarms) for alarms in found] == [0, 0, 0, 0, 1]


def test_a_continued_run_knows_what_was_before():
    config = AlarmsConfig()
    config.kl.above = 5.0
    watch = AlarmDetector(config)
    watch.restore([START, {"step": 2, "probe/kl": 6.0}])
    assert watch.check_row({"step": 4, "probe/kl": 6.0}) == [], "said before the stop"
    assert [a.name for a in watch.check_row({**START, "step": 4, "probe/entropy": 0.1})] == ["collapse"]
    config.kl.action = "stop"
    watch.restore([{"step": 2, "probe/kl": 6.0}])
    assert [a.name for a in watch.check_row({"step": 4, "probe/kl": 6.0})] == ["kl"], "what stops, stops again"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["alarms.non_finite.action=halt"], "alarms.non_finite.action=halt: choose from off, warn, alert, stop"),
        (["alarms.forgetting.above=-1"], "alarms.forgetting.above=-1: expected above 0"),
        (["alarms.collapse.action=stop"], "alarms.collapse.action=stop: nothing is measured during training"),
        (["alarms.kl.action=stop", "probe.every=5"], "alarms.kl.action=stop: needs a budget; set alarms.kl.above"),
        (["probe.every=0"], "probe.every=0: expected at least 1"),
        (["probe.texts=nowhere.jsonl"], "probe.texts=nowhere.jsonl: no such file"),
        (["probe.texts=embedded:wiki"], "probe.texts=embedded:wiki: choose embedded:texts, or a file"),
        (
            ["objective=probe/gold/rm at kl 5"],
            "objective=probe/gold/rm at kl 5: no such reward; there are probe/rewards/",
        ),
        (["objective=probe/kl", "probe=none"], "objective=probe/kl: there is no probe in this run; set probe.prompts"),
        (["probe.win_by=taste"], "probe.win_by=taste: no such reward; there are"),
        (
            ["reward=abstention", "+probe.gold.g.function=posttrain.rewards.abstain.abstention"],
            "probe.gold.g: training sees reward.abstention; gold must be another reward",
        ),
    ],
)
def test_settings_that_cannot_work_are_said_at_once(options, message):
    run, _ = compose("+recipe=dpo_smollm2", *options)
    with pytest.raises(PosttrainError) as error:
        preflight.check(run)
    assert message in str(error.value)


def test_an_unknown_alarm_is_named():
    with pytest.raises(PosttrainError, match=r"alarms.klx: unknown key; did you mean kl\?"):
        compose("+recipe=dpo_smollm2", "+alarms.klx.above=1")


KIND = ("+recipe=dpo_smollm2", "trainer.args.learning_rate=1e-2", "trainer.args.eval_strategy=no")


def test_a_kl_budget_stops_with_a_checkpoint_and_the_command_does_not_go_past_it(train, capsys):
    """And, once allowed, the run goes on from there to the very weights of one that was never stopped."""
    probe = ("probe.prompts=4", "probe.every=1", "probe.max_new_tokens=4", "~probe.rewards.invented")
    gold = "+probe.gold.letter.function=tests.helpers.rewards.letter"
    budget = (*probe, gold, "name=budget", "alarms.kl.above=1e-4", "alarms.kl.action=stop")
    with pytest.raises(PosttrainError, match=r"alarms.kl: stopped at step \d: KL to the reference is .* nats"):
        train(*KIND, *budget, "tracking=wandb")
    run = RunDirectory.of(*compose(*KIND, *SMALL, *budget))
    record = run.record()
    stopped = record["stopped"]
    assert record["status"] == "stopped"
    assert stopped["alarm"] == "kl"
    assert run.last_checkpoint().name == f"checkpoint-{stopped['step']}"
    assert stopped["checkpoint"] == f"checkpoints/checkpoint-{stopped['step']}"
    assert record["alarms"] == [row["alarm"] for row in rows(run.metrics) if "alarm" in row]
    assert [alarm["name"] for alarm in record["alarms"]] == ["kl"]
    assert "alarm" in capsys.readouterr().out
    assert alerts(run) == [f"{run.name}: kl"]
    with pytest.raises(PosttrainError, match=r"alarms\.kl: stopped at step"):
        train(*KIND, *budget)
    assert not run.finished()

    assert train(*KIND, *budget, "alarms.kl.action=warn").path == run.path
    assert run.finished()
    whole = train(*KIND, *probe, gold, "name=whole")
    first, second = weights(run.model), weights(whole.model)
    assert all(torch.equal(first[n], second[n]) for n in first)

    def measured(directory):
        cost = ("probe/seconds", "probe/share")
        return [{k: v for k, v in r.items() if k not in cost} for r in rows(directory.metrics) if "probe/kl" in r]

    assert measured(run) == measured(whole), "wins, forgetting and all, as if there had been no stop"
    assert "probe/win_rate" in measured(run)[-1]


def alerts(run):
    return [record.alert.title for record in finished_records(run) if record.WhichOneof("record_type") == "alert"]


def test_a_run_that_breaks_keeps_its_last_whole_checkpoint(train, monkeypatch):
    from transformers import Trainer

    step = Trainer.training_step
    broken = []

    def at_three(self, model, inputs, *args, **kwargs):
        loss = step(self, model, inputs, *args, **kwargs)
        if self.state.global_step == 2:  # in the third step
            next(p for p in model.parameters() if p.requires_grad).grad.fill_(math.nan)
            broken.append(loss)
        return loss

    monkeypatch.setattr(Trainer, "training_step", at_three)
    saves = ("trainer.args.save_strategy=steps", "trainer.args.save_steps=1", "trainer.args.logging_steps=10")
    with pytest.raises(PosttrainError, match=r"non_finite: stopped at step 3: .* Kept: checkpoints/checkpoint-2\."):
        train("+recipe=sft_smollm2", *saves, "name=broken", "trainer.args.max_grad_norm=0")
    (path,) = (p.parent for p in Path("outputs").glob("broken-*/run.json"))
    run = RunDirectory(path)
    assert broken
    assert json.loads((path / "run.json").read_text())["stopped"]["step"] == 3
    assert all(value.isfinite().all() for value in weights(run.last_checkpoint()).values())


def test_off_in_a_recipe_is_off():
    """YAML reads a bare `off` as false."""
    recipe = OmegaConf.create("{kl: {action: off}, forgetting: {action: stop}}")
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AlarmsConfig), recipe))
    assert (found.kl.action, found.forgetting.action, found.length.action) == ("off", "stop", "warn")


def test_told_says_how_to_go_on():
    stopped = {
        "alarm": "kl",
        "step": 3,
        "message": "m",
        "checkpoint": None,
        "setting": setting(AlarmsConfig(), "kl"),
    }
    assert alarms.stopped_run_message({"status": "stopped", "stopped": stopped}, AlarmsConfig()) == (
        "alarms.kl: stopped at step 3: m. No checkpoint was saved. To continue, use the same command with "
        "alarms.kl.action=warn, or another threshold"
    )
    assert alarms.stopped_run_message({"status": "finished"}, AlarmsConfig()) is None


def test_gradients_that_are_usually_zero_do_not_vanish():
    assert raised([{"step": i, "grad_norm": 0.0} for i in range(20)]) == []


def test_a_batch_without_a_reward_is_no_alarm_and_several_in_a_row_are_one_that_keeps_the_model():
    watch = AlarmDetector(AlarmsConfig())
    rewards = [None, 1.0, None, None, None, None]
    found = [watch.check_row({"step": i, "loss": 0.0, "reward": reward}) for i, reward in enumerate(rewards)]
    assert [len(alarms) for alarms in found] == [0, 0, 0, 0, 1, 0]
    (alarm,) = found[4]
    assert (alarm.name, alarm.action, alarm.value) == ("non_finite", "stop", 3)
    assert alarm.message == "no completion has had a reward in the last 3 logs; look at the rewards"


def unrewarded(completions, **columns):
    return [None] * len(completions)


def test_a_run_without_rewards_stops_with_a_checkpoint(train):
    reward = ("~reward", "+reward.none.function=tests.training.test_alarms.unrewarded")
    sizes = ("trainer.args.num_generations=4", "trainer.args.max_completion_length=4", "data.eval_size=0")
    with pytest.raises(PosttrainError, match=r"no completion has had a reward .* Kept: checkpoints/checkpoint-3\."):
        train("+recipe=grpo_smollm2", *reward, *sizes, "name=none", "trainer.args.max_steps=5")
