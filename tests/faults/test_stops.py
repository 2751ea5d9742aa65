"""A run that is stopped, wherever, and goes on equals one that never was: weights, metrics, samples, run.json."""

import os
import signal

import pytest

from tests.helpers.faults import KILLED, differences, directory, dying, run, start, wait
from tests.helpers.runs import SMALL, write_pairs

# Seven steps of two epochs and a half, a checkpoint at every second, logs at every third: nothing falls together.
STEPS = (
    *("trainer.args.max_steps=7", "trainer.args.num_train_epochs=5", "trainer.args.save_steps=2"),
    *("trainer.args.logging_steps=3", "trainer.args.learning_rate=1e-2", "trainer.args.lr_scheduler_type=constant"),
    *("trainer.args.eval_strategy=epoch", "trainer.args.eval_on_start=true", "data.max_train_rows=24"),
)
PROBE = ("probe.prompts=2", "probe.max_new_tokens=4", "probe.every=2", "probe.during=true")
ONLINE = (
    *("trainer.args.max_completion_length=6", "trainer.args.beta=0.1", "trainer.args.per_device_eval_batch_size=8"),
    *("~reward", "+reward.letter.function=tests.helpers.rewards.letter"),
)
GROUPS = ("trainer.args.num_generations=4", "trainer.args.steps_per_generation=2", "trainer.args.num_iterations=2")
KINDS = ("sft", "reward", "dpo", "kto", "grpo", "rloo", "ppo")


def command(kind, *more):
    extra = ()
    if kind in ("grpo", "rloo", "ppo"):
        extra = ONLINE if kind == "ppo" else (*ONLINE, *GROUPS)
    probe = () if kind == "reward" else PROBE
    if kind == "sft":
        probe = (*PROBE, "~probe.rewards.invented")
    return (f"+recipe={kind}_smollm2", *SMALL, *STEPS, *probe, *extra, *more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The runs that nothing stops, by their command."""
    done = {}

    def of(*overrides):
        if overrides not in done:
            folder = tmp_path_factory.mktemp("whole")
            here = os.getcwd()
            os.chdir(folder)
            write_pairs(folder / "pairs.jsonl")
            done[overrides] = run(*overrides)
            os.chdir(here)
        return done[overrides]

    return of


def died(work, tmp_path, *patches):
    def doomed():
        for patch in patches:
            patch()
        work()

    return wait(start(doomed, tmp_path / "log.txt"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_in_its_steps(kind, whole, tmp_path, pairs):
    args = command(kind)
    assert died(lambda: run(*args), tmp_path, dying("transformers:Trainer._save_checkpoint", 2)) == KILLED
    assert differences(whole(*args), run(*args)) == []


MOMENTS = {
    "the first evaluation": dying("transformers:Trainer.evaluate", 1),
    "before a checkpoint is sealed": dying("posttrain.runs.checkpoint:seal", 2),
    "after a checkpoint is sealed": dying("posttrain.runs.checkpoint:seal", 2, after=True),
    "the evaluation after an epoch": dying("transformers:Trainer.evaluate", 2, after=True),
    "after the last checkpoint": dying("posttrain.runs.checkpoint:seal", 4, after=True),
    "between metrics and samples": dying("posttrain.probe.callback:_by_prompt", 4),
    "the last measurement": dying("posttrain.probe.callback:Probe.on_train_end"),
    "before it is finished": dying("posttrain.runs.curves:draw_curves"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at(moment, whole, tmp_path, pairs):
    args = command("sft")
    assert died(lambda: run(*args), tmp_path, MOMENTS[moment]) == KILLED
    assert not directory(*args).finished()
    assert differences(whole(*args), run(*args)) == []


def signalled(at, call=1):
    """A patch by which SIGTERM comes at the `call`-th call of a function."""

    def patch():
        module, _, path = at.partition(":")
        owner = __import__(module, fromlist=["x"])
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        original, calls = getattr(owner, name), 0

        def interrupted(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*args, **kwargs)

        setattr(owner, name, interrupted)

    return patch


SIGNALS = {
    "a step before which an epoch ends": ("sft", "posttrain.training.resume:Resumable.stop_on_signal", 3, "step 3"),
    "an evaluation": ("sft", "transformers:Trainer.evaluate", 1, "step 3"),
    "the probe's samples": ("sft", "posttrain.probe.callback:Probe._generate", 2, "step 2"),
    "the last measurement": ("sft", "posttrain.probe.callback:Probe.on_train_end", 1, "step 7"),
    "a generation": ("grpo", "transformers:Trainer.training_step", 1, "step 4"),
}


@pytest.mark.parametrize("moment", SIGNALS)
def test_a_signal_in(moment, whole, tmp_path, pairs):
    kind, at, call, where = SIGNALS[moment]
    more = {
        "an evaluation": ("trainer.args.eval_on_start=false", "trainer.args.per_device_eval_batch_size=4"),
        # What is due on the way to the generation's end, after the second step, is still measured.
        "a generation": ("trainer.args.eval_strategy=steps", "trainer.args.eval_steps=2"),
    }
    args = command(kind, *more.get(moment, ()))
    # No evaluation, and no measurement, after the signal.
    late = dying("transformers:Trainer._report_to_hp_search") if moment == "an evaluation" else lambda: None
    assert died(lambda: run(*args), tmp_path, signalled(at, call), late) == 128 + signal.SIGTERM
    said = (tmp_path / "log.txt").read_text()
    assert f"Stopped by SIGTERM at {where}; a checkpoint is saved. Continue with: " in said
    assert directory(*args).record()["status"] == "interrupted"
    assert differences(whole(*args), run(*args)) == []
