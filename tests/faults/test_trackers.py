"""Trackers that are away, die or lose points: the run goes on, and has everything in the end."""

import os
import socket
import threading
import time

import pytest

from tests.faults.test_stops import command
from tests.helpers.faults import KILLED, directory, dying, run, start, wait
from tests.helpers.runs import rows


def plain(*more):
    return command("sft", "trainer.args.logging_steps=1", "trainer.args.eval_strategy=no", "probe.every=null", *more)


def test_trackio_has_every_point_in_the_project_that_is_named(tmp_path, pairs, monkeypatch):
    pytest.importorskip("trackio")
    from trackio import sqlite_storage

    for module in (sqlite_storage, __import__("trackio.utils").utils):
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    done = run(*plain("tracking=trackio", "tracking.project=mine", "tracking.group=together"))
    storage = sqlite_storage.SQLiteStorage
    assert storage.get_projects() == ["mine"]
    assert storage.get_runs("mine") == [done.name]
    logged = storage.get_logs("mine", done.name)
    losses = [row["train/loss"] for row in logged if "train/loss" in row]
    assert losses == pytest.approx([row["loss"] for row in rows(done.metrics) if "loss" in row])
    probed = [row["train/global_step"] for row in logged if "probe/length" in row]
    assert probed == [0, 7], "the measurement after training too"
    config = storage.get_run_config("mine", done.name)
    assert config["trainer"]["kind"] == "sft"
    assert config["_Group"] == "together"


def test_points_that_wandb_had_not_written_when_the_process_was_killed_are_sent_again(tmp_path, pairs):
    from posttrain.training import wandb_file

    args = plain("tracking=wandb", "tracking.mode=offline")

    def doomed():
        dying("transformers:Trainer.training_step", 6)()
        run(*args)

    assert wait(start(doomed, tmp_path / "log.txt")) == KILLED
    path = directory(*args).path
    for file in path.glob("wandb/*/*.wandb"):  # the last block, which was still in the service's memory
        os.truncate(file, file.stat().st_size // 2)
    done = run(*args)
    sent = {int(p["train/global_step"]) for p in wandb_file.history(done.path) if "train/loss" in p}
    assert sent == {1, 2, 3, 4, 5, 6, 7}
    assert wandb_file.missing(done.path, rows(done.metrics)) == []


def test_a_wandb_that_does_not_answer_costs_fifteen_seconds_at_most(tmp_path, monkeypatch, caplog):
    """It accepts connections and says nothing, which takes longer to notice than a port that is closed."""
    import wandb

    from posttrain.config.schema import TrackingConfig
    from posttrain.training import tracking

    silent, kept = socket.socket(), []
    silent.bind(("127.0.0.1", 0))
    silent.listen()
    threading.Thread(target=lambda: kept.append(silent.accept()), daemon=True).start()
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert tracking.INIT_TIMEOUT <= 8
    monkeypatch.setattr(tracking, "INIT_TIMEOUT", 2)
    wandb.teardown()
    before = time.monotonic()
    tracker = tracking.Tracker(TrackingConfig(), tmp_path, {}, None)
    seconds = time.monotonic() - before
    tracker.finish()
    wandb.teardown()
    assert "logging offline" in caplog.text
    assert seconds < 2 + 7
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_a_tracker_that_dies_in_the_midst_ends_nothing(tmp_path, pairs, monkeypatch, caplog):
    from transformers.integrations import TensorBoardCallback

    def dead(self, args, state, *rest, **kwargs):
        if state.global_step > 2:
            raise ConnectionError("gone")

    monkeypatch.setattr(TensorBoardCallback, "on_log", dead)
    done = run(*plain("tracking=tensorboard"))
    assert done.finished()
    assert "tracking.backend=tensorboard: stopped (gone); metrics.jsonl has everything" in caplog.text
