"""What W&B was really given, read back from its offline file; and that a tracker's trouble ends no training."""

import json
import time

import pytest

from posttrain.training.tracking import Tracker
from tests.helpers.runs import rows
from tests.helpers.wandb_run import finished_records


def wandb_records(run):
    """What the run's offline file holds: (config, history rows, run records)."""
    history, config, started = [], {}, []
    for record in finished_records(run):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            started.append(record.run)
            config |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
        elif kind == "config":
            config |= {i.key: json.loads(i.value_json) for i in record.config.update}
        elif kind == "history":
            history.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    return config, history, started


def test_wandb_gets_loss_rewards_kl_samples_and_config(train):
    run = train(
        *("+recipe=dpo_smollm2", "tracking=wandb", "tracking.tags=[a,b]", "tracking.group=g"),
        *("probe.prompts=2", "probe.greedy_prompts=2", "probe.max_new_tokens=4"),
    )
    config, history, started = wandb_records(run)
    tables = [row["probe/samples.nrows"] for row in history if "probe/samples.nrows" in row]
    assert tables == [2, 4], "the same two prompts, before and after"
    keys = {key for row in history for key in row}
    for key in (
        *("train/loss", "train/rewards/margins", "train/logratio/chosen", "train/grad_norm", "train/global_step"),
        *("eval/loss", "eval/rewards/accuracies", "probe/kl", "probe/length", "probe/samples.nrows"),
    ):
        assert key in keys, key
    losses = [row["train/loss"] for row in history if "train/loss" in row]
    assert losses == pytest.approx([row["loss"] for row in rows(run.metrics) if "loss" in row])
    assert config["trainer"]["kind"] == "dpo"
    assert config["trainer"]["args"]["beta"] == 0.1
    (record,) = started
    assert (record.project, record.run_group, list(record.tags)) == ("posttrain", "g", ["a", "b", "dpo", "lora"])
    assert (record.run_id, record.job_type) == (run.name, "dpo")
    assert not {"doctor", "sample", "evaluate", "stages", "reward"} & set(config), "what the run does not read"


def test_reward_and_kl_of_an_online_trainer(train):
    run = train(
        *("+recipe=rloo_smollm2", "tracking=wandb", "trainer.args.max_steps=2", "trainer.args.num_generations=4"),
        *("trainer.args.max_completion_length=6", "trainer.args.eval_strategy=no", "trainer.args.beta=0.1"),
    )
    keys = {key for row in wandb_records(run)[1] for key in row}
    assert {"train/reward", "train/kl", "train/rewards/abstention/mean", "train/completions/mean_length"} <= keys


def test_tensorboard_gets_the_same_names(train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train("+recipe=sft_smollm2", "tracking=tensorboard", "probe.prompts=2", "probe.max_new_tokens=4")
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert {"train/loss", "eval/loss", "probe/kl"} <= set(events.Tags()["scalars"])


def test_a_wandb_server_that_cannot_be_reached_ends_nothing(train, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr("posttrain.training.tracking.INIT_TIMEOUT", 3)
    began = time.monotonic()
    run = train("+recipe=sft_smollm2", "tracking=wandb")
    assert run.finished()
    assert time.monotonic() - began < 60
    assert any("offline" in message for message in caplog.messages)
    assert list((run.path / "wandb").glob("offline-run-*"))
    assert not any(b"a" * 40 in p.read_bytes() for p in run.path.rglob("*") if p.is_file()), "the key is nowhere"


def test_a_tracker_that_fails_midway_is_left_behind(tmp_path, monkeypatch, caplog):
    import wandb

    from posttrain.config.schema import TrackingConfig

    tracker = Tracker(TrackingConfig(), tmp_path, {}, None)
    monkeypatch.setattr(wandb, "log", lambda *_, **__: 1 / 0)
    tracker.log({"probe/kl": 1.0}, 1)
    tracker.log({"probe/kl": 2.0}, 2)
    assert tracker.backend == "none"
    assert "metrics.jsonl has everything" in caplog.text
    wandb.finish()


@pytest.mark.parametrize(("key", "mode"), [("", "offline"), ("short", "offline"), ("a" * 40, "online")])
def test_wandb_is_online_where_there_is_a_key(key, mode, tmp_path, monkeypatch, capsys):
    """Without a word, a warning, a question, or a call to the server, which cannot be reached here."""
    import warnings

    import wandb

    from posttrain.training import tracking

    for name, value in (("WANDB_API_KEY", key), ("WANDB_BASE_URL", "http://127.0.0.1:9")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    wandb.teardown()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tracking._wandb_mode() == mode
    assert capsys.readouterr() == ("", "")
    wandb.teardown()


@pytest.mark.parametrize("backend", ["mlflow", "comet"])
def test_other_trackers_get_the_probes_metrics_and_are_ended(backend, tmp_path, monkeypatch):
    """Transformers' own callbacks log the rest, to the run that is begun here. The libraries are stood in for."""
    import sys
    from unittest.mock import MagicMock

    from posttrain.config.schema import TrackingConfig

    library = MagicMock()
    monkeypatch.setitem(sys.modules, {"mlflow": "mlflow", "comet": "comet_ml"}[backend], library)
    tracker = Tracker(TrackingConfig(backend=backend, project="p"), tmp_path / "run", {"trainer": {"kind": "dpo"}}, "g")
    tracker.log({"probe/kl": 1.0}, 3)
    tracker.finish()
    writer = library if backend == "mlflow" else library.start.return_value
    writer.log_metrics.assert_called_once_with({"probe/kl": 1.0}, step=3)
    (writer.end_run if backend == "mlflow" else writer.end).assert_called_once_with()
    assert tracker.report_to == {"mlflow": "mlflow", "comet": "comet_ml"}[backend]


def test_a_tracker_that_is_not_installed_is_answered_before_anything_loads(pairs, monkeypatch):
    from posttrain import extras
    from posttrain.errors import PosttrainError
    from posttrain.jobs import preflight
    from tests.helpers.runs import compose

    monkeypatch.setattr(extras, "missing_modules", lambda *modules: list(modules))
    run, _ = compose("trainer=dpo", "model=tiny", "data.path=pairs.jsonl", "tracking=mlflow")
    with pytest.raises(PosttrainError, match=r"tracking.backend=mlflow: not installed; pip install .*mlflow"):
        preflight.check(run)


def test_an_adapter_trains_at_a_rate_for_adapters(pairs):
    from tests.helpers.runs import compose

    common = ("model=tiny", "data.path=pairs.jsonl")
    assert compose("trainer=sft", "peft=lora", *common)[0].trainer.args["learning_rate"] == 2e-4
    assert "learning_rate" not in compose("trainer=sft", "peft=none", *common)[0].trainer.args
    own = compose("trainer=sft", "peft=lora", "trainer.args.learning_rate=1e-5", *common)[0]
    assert own.trainer.args["learning_rate"] == 1e-5
