"""Sweeps and pipelines that are stopped in the midst say who is unfinished, and how it goes on."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from posttrain.errors import PosttrainError, first_line
from posttrain.jobs import sweep
from tests.faults.test_stops import command
from tests.helpers.faults import directory, run, start, wait


def test_jobs_that_were_stopped_are_named_at_the_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "current", tmp_path)
    for name in ("a", "b", "c"):  # and d did not begin
        sweep._append(tmp_path / "started.jsonl", {"command": f"posttrain name={name}"})
    ended = {"command": "posttrain name=a", "status": "finished", "objective": None, "error": None, "run": "r"}
    sweep._append(tmp_path / "jobs.jsonl", ended)
    sweep._append(tmp_path / "jobs.jsonl", {**ended, "command": "posttrain name=b", "status": "failed", "error": "X"})
    sweep.report(sweep.of_grid(["-m", "name=a,b,c,d", "hydra/launcher=joblib"]))
    said = capsys.readouterr().err
    assert "1 of 4 jobs finished" in said
    assert "failed   posttrain name=b\n         X" in said
    assert "stopped  posttrain name=c\nwaiting  posttrain name=d\nThe command of the sweep resumes" in said


def test_a_worker_that_was_killed_is_one_message(capsys):
    """joblib ends its pool with the worker."""
    from concurrent.futures.process import BrokenProcessPool

    from hydra._internal import utils

    from posttrain.jobs.command import plain_errors

    def launch():
        raise BrokenProcessPool("A worker process managed by the executor was unexpectedly terminated.")

    with plain_errors(), pytest.raises(SystemExit):
        utils.run_and_report(launch)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hydra/launcher: a job's process was killed (too little memory, most likely); the launcher")


@pytest.mark.parametrize(
    ("error", "said"), [(ValueError(), "ValueError"), (KeyError("k"), "'k'"), (OSError("\na"), "a")]
)
def test_an_error_without_words_has_its_type(error, said):
    assert first_line(error) == said


def test_two_sweeps_have_a_folder_each_and_optuna_goes_on():
    (own,) = set(sweep.arguments(["-m", "x=1,2"])) - {"-m", "x=1,2"}
    assert own.startswith("hydra.sweep.dir=")
    assert own.endswith(f"-{os.getpid()}")
    assert sweep.arguments(["-m", "hydra.sweep.dir=mine"]) == ["-m", "hydra.sweep.dir=mine"]
    assert "hydra.sweeper.max_failure_rate=0.99" in sweep.arguments(["-m", "hydra/sweeper=optuna"])


def test_jobs_of_two_sweeps_wait_for_each_other_at_one_run(tmp_path, pairs, capsys):
    """The second one finds it finished."""
    from dataclasses import replace

    from posttrain.jobs.train import train
    from tests.helpers.runs import compose

    args = command("sft", "probe.prompts=0", "trainer.args.eval_strategy=no", "trainer.args.eval_on_start=false")
    first = start(lambda: run(*args), tmp_path / "log.txt")
    here = directory(*args)
    while not here.claimed_elsewhere():
        time.sleep(0.05)
    job, origin = compose(*args)
    train(job, replace(origin, sweep_dir=Path("sweep")))
    assert wait(first) == 0
    assert "another process is running it; waiting for it" in capsys.readouterr().out
    assert "loss" in (tmp_path / "log.txt").read_text(), "the first one trained"


def test_a_pipeline_that_is_stopped_is_not_left_running(tmp_path, pairs, monkeypatch):
    from posttrain.pipeline import process

    def stage(command, log, signals):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        return -signal.SIGTERM

    monkeypatch.setattr(process, "execute", stage)
    with pytest.raises(SystemExit) as stopped:
        run("+recipe=sft_dpo_smollm2", "+common.model=tiny", "+common.data.path=pairs.jsonl")
    assert stopped.value.code == 143
    (record,) = Path("outputs").glob("*/pipeline.json")
    assert json.loads(record.read_text())["status"] == "interrupted"


def test_a_disk_that_is_full_from_the_start_is_said(pairs, monkeypatch):
    from posttrain.runs import directory as module

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.RunDirectory, "claim", full)
    with pytest.raises(PosttrainError, match=r"No space left on device; the last whole checkpoint is none"):
        run(*command("sft"))
