"""A run that dies loses at most the work since its last checkpoint, and the same command goes on from there."""

import glob
import os
import signal
import subprocess
import sys
import time

import pytest
from filelock import FileLock
from safetensors import SafetensorError

from posttrain.errors import PosttrainError
from posttrain.jobs.train import train as job
from posttrain.runs.directory import RunDirectory
from tests.helpers.command import Popen
from tests.helpers.runs import ENVIRONMENT, SMALL, compose, rows, write_pairs

# Eight steps, a checkpoint at every second.
STEPS = ("trainer.args.num_train_epochs=2", "trainer.args.save_steps=2", "trainer.args.learning_rate=1e-2")
ONLINE = ("trainer.args.max_completion_length=8", "trainer.args.per_device_train_batch_size=8", "trainer.args.beta=0.1")


def command(kind, *more):
    extra = ()
    if kind in ("grpo", "rloo", "ppo"):
        extra = (*ONLINE, "~reward", "+reward.letter.function=tests.helpers.rewards.letter", "trainer.args.max_steps=8")
    return (f"+recipe={kind}_smollm2", *SMALL, *STEPS, *extra, *more)


def start(folder, *args):
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    return Popen(
        [sys.executable, "-m", "posttrain", *args],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path, process, timeout=120):
    end = time.monotonic() + timeout
    while not glob.glob(str(path)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_killed_then_the_same_command(tmp_path):
    """SIGKILL while training: the same command continues from the last whole checkpoint and finishes."""
    write_pairs(tmp_path / "pairs.jsonl", 72)
    args = command("dpo", "trainer.args.num_train_epochs=6", "trainer.args.save_steps=10")
    process = start(tmp_path, *args)
    wait_for(tmp_path / "outputs/*/checkpoints/checkpoint-*/trainer_state.json", process)
    process.kill()
    process.wait()
    (folder,) = (tmp_path / "outputs").glob("dpo*")
    assert not RunDirectory(folder).finished()
    # What a kill in the middle of saving leaves.
    (folder / "checkpoints/checkpoint-9999").mkdir()
    (folder / "checkpoints/checkpoint-9999/trainer_state.json").write_text('{"global_step": 99')
    process = start(tmp_path, *args)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    assert "continued from checkpoint-" in output
    assert RunDirectory(folder).finished()
    assert not (folder / "checkpoints/checkpoint-9999").exists()
    steps = [row["step"] for row in rows(folder / "metrics.jsonl") if "loss" in row]
    assert steps == sorted(set(steps)), "no step is logged twice"


def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", 72)
    process = start(tmp_path, *command("dpo", "trainer.args.num_train_epochs=100", "trainer.args.save_steps=5"))
    wait_for(tmp_path / "outputs/*/checkpoints/checkpoint-*", process)
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: the run stops at the next step it can resume from" in output, (
        "said at once: a step may take minutes"
    )
    assert "Stopped by SIGTERM at step" in output
    assert "Continue with: posttrain +recipe=dpo_smollm2" in output
    assert "Traceback" not in output


def test_a_run_in_progress_is_not_run_twice(pairs):
    run, origin = compose(*command("sft"))
    directory = RunDirectory.of(run, origin)
    directory.path.mkdir(parents=True)
    half = directory.checkpoints / "checkpoint-2"
    half.mkdir(parents=True)  # the other process is in the middle of saving
    with FileLock(directory.path / ".lock"), pytest.raises(PosttrainError, match="another process is running"):
        job(run, origin)
    assert half.is_dir(), "what another process writes is left alone"


def test_changed_data_makes_another_run(pairs):
    run, origin = compose(*command("sft"))
    before = RunDirectory.of(run, origin).path
    write_pairs(pairs, 48)
    assert RunDirectory.of(run, origin).path != before


def test_settings_that_do_not_change_the_result_keep_the_directory(pairs):
    plain = RunDirectory.of(*compose(*command("sft"))).path
    assert RunDirectory.of(*compose(*command("sft", "tracking.project=other"))).path == plain
    assert RunDirectory.of(*compose(*command("sft", "trainer.args.learning_rate=3e-3"))).path != plain


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device (os error 28)")],
)
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, pairs, monkeypatch, error):
    """Saving fails with ENOSPC, which safetensors has no number for: the message says so, the checkpoint stays good."""
    from transformers import Trainer

    run, origin = compose(*command("sft"))
    save = Trainer._save_checkpoint

    def full(self, *args, **kwargs):
        if self.state.global_step > 2:
            raise error
        return save(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", full)
        with pytest.raises(PosttrainError, match=r"No space left on device.*checkpoint-2"):
            job(run, origin)
    directory = RunDirectory.of(run, origin)
    assert directory.last_checkpoint().name == "checkpoint-2"
    job(run, origin)
    assert directory.finished()
