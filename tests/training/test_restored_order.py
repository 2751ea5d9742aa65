"""What a resumed run takes from before: the order of later epochs, and an alarm that was about to stop it."""

import os

import pytest

from posttrain.errors import PosttrainError
from tests.helpers.faults import KILLED, differences, directory, dying, run, start, wait
from tests.helpers.runs import SMALL, rows, write_pairs

ARGS = (
    *("+recipe=sft_smollm2", *SMALL, "~probe.rewards.invented", "trainer.args.max_steps=8"),
    *("trainer.args.num_train_epochs=9", "data.max_train_rows=24", "trainer.args.learning_rate=1e-2"),
    *("trainer.args.save_steps=2", "trainer.args.lr_scheduler_type=constant"),
)


def died(args, tmp_path, patch):
    def doomed():
        patch()
        run(*args)

    return wait(start(doomed, tmp_path / "log.txt"))


@pytest.mark.parametrize(
    "option",
    [
        "trainer.args.train_sampling_strategy=group_by_length",
        "trainer.args.accelerator_config={use_seedable_sampler: false}",
    ],
)
def test_a_later_epoch_has_its_order_after_a_resume(option, tmp_path, pairs):
    args = (*ARGS, option)
    assert died(args, tmp_path, dying("posttrain.runs.checkpoint:seal", 3, after=True)) == KILLED
    whole = tmp_path / "whole"
    whole.mkdir()
    os.chdir(whole)
    write_pairs(whole / "pairs.jsonl")
    never_stopped = run(*args)
    os.chdir(tmp_path)
    assert differences(never_stopped, run(*args)) == []


BUDGET = (
    *("+recipe=ppo_smollm2", *SMALL, "trainer.args.max_steps=12", "trainer.args.num_ppo_epochs=2", "data.eval_size=0"),
    *("trainer.args.num_train_epochs=9", "trainer.args.save_steps=4", "trainer.args.learning_rate=1e-2"),
    *("~reward", "+reward.letter.function=tests.helpers.rewards.letter", "trainer.args.max_completion_length=6"),
    *("alarms.kl.action=stop", "alarms.kl.above=0.001"),
)


def test_a_run_that_was_killed_while_an_alarm_stopped_it_stops(tmp_path, pairs):
    assert died(BUDGET, tmp_path, dying("posttrain.training.raised_alarms:record_stop")) == KILLED
    stopped = directory(*BUDGET)
    before = rows(stopped.metrics)
    last = stopped.last_checkpoint().name
    for _ in range(2):  # the second time, the message only
        with pytest.raises(PosttrainError, match=r"alarms\.kl: stopped at step"):
            run(*BUDGET)
    assert stopped.record()["status"] == "stopped"
    assert stopped.last_checkpoint().name == last
    assert [row for row in rows(stopped.metrics) if "alarm" in row] == [row for row in before if "alarm" in row]
    assert run(*BUDGET, "alarms.kl.above=1000").finished(), "with another threshold it goes on"
