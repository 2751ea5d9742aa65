"""Experiment tracking: trackers besides `metrics.jsonl`, under one vocabulary (docs/tracking.md).

Transformers' own callbacks send a trainer's logs. This module starts the run (name, group, tags, config, resume), adds
the probe's metrics and the samples table, and prevents that a tracker stops or blocks a training.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from posttrain.config.schema import TrackingConfig
from posttrain.console import print_plain
from posttrain.runs.metrics import read
from posttrain.training.metrics_log import NoTracker

logger = logging.getLogger(__name__)

# Transformers' callbacks of the backends.
TRACKERS = ("WandbCallback", "TrackioCallback", "TensorBoardCallback", "MLflowCallback", "CometCallback")
# Seconds until W&B counts as unreachable, and the longest time for its end.
INIT_TIMEOUT = 8
FINISH_TIMEOUT = 30


class Tracker(NoTracker):
    """One backend for one run: `log` scalars, show a `table`, `finish`. All are no-ops after a failure."""

    def __init__(self, config: TrackingConfig, run_dir: Path, run_config: dict[str, Any], group: str | None):
        self.backend = config.backend
        self._run_dir = run_dir
        self._send: Callable[[dict[str, float], int], Any]
        self._end: Callable[[], Any]
        start = getattr(self, f"_start_{config.backend}")
        self._without_failing(lambda: start(config, run_config, config.group or group))
        self.report_to = "comet_ml" if self.backend == "comet" else self.backend

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._without_failing(lambda: self._send(metrics, step))

    def table(self, name: str, rows: list[dict[str, Any]], step: int) -> None:
        """A table of samples, one row per completion, in W&B; elsewhere `samples.jsonl` holds it."""
        if self.backend == "wandb" and rows:
            import wandb

            columns: list[Any] = list(rows[0])
            data = [[row[c] for c in columns] for row in rows]
            point = {"train/global_step": step}
            self._without_failing(lambda: wandb.log({name: wandb.Table(columns=columns, data=data), **point}))

    def alert(self, title: str, text: str) -> None:
        """A message that W&B sends to the run's owner; with other trackers the console and `run.json` show it."""
        if self.backend == "wandb":
            import wandb

            run: Any = wandb.run
            self._without_failing(lambda: run.alert(title=title, text=text, level="WARN"))

    def finish(self) -> None:
        """End the run, so that the next job of a sweep gets one of its own."""
        self._without_failing(lambda: self._end())

    def _without_failing(self, action: Callable[[], Any]) -> None:
        if self.backend == "none":
            return
        try:
            action()
        except Exception as error:  # no error of a tracker may end a training
            logger.warning("tracking.backend=%s: stopped (%s); metrics.jsonl has everything", self.backend, error)
            self.backend = "none"

    def _start_wandb(self, config: TrackingConfig, run_config: dict[str, Any], group: str | None) -> None:
        import wandb

        mode: Any = config.mode if config.mode != "auto" else os.environ.get("WANDB_MODE") or _wandb_mode()
        options: dict[str, Any] = {
            "project": config.project,
            "entity": config.entity,
            "group": group,
            "job_type": run_config.get("trainer", {}).get("kind"),
            "tags": [*config.tags, *_tags(run_config)],
            "name": self._run_dir.name,
            "id": self._run_dir.name[-64:],
            "dir": self._run_dir,
            "config": run_config,
            "resume": "allow",
        }
        settings: dict[str, Any] = {"silent": True, "console": "wrap"}
        self._send = lambda metrics, step: wandb.log({**metrics, "train/global_step": step})
        self._end = lambda: wandb.finish()
        # Transformers' callback would otherwise use another project when W&B is restarted.
        os.environ["WANDB_PROJECT"] = config.project
        try:
            # Offline, no timeouts are needed. Online, `wandb sync` can send later what was not sent in time.
            limits: dict[str, Any] = {}
            if mode == "online":
                limits = {"init_timeout": INIT_TIMEOUT, "finish_timeout": FINISH_TIMEOUT}
            wandb.init(mode=mode, settings=wandb.Settings(**settings, **limits), **options)
        except Exception as error:
            if mode != "online":
                raise
            logger.warning("W&B cannot be reached (%s); logging offline", error)
            mode = "offline"
            wandb.teardown()  # or its service keeps the run's id in use
            wandb.init(mode=mode, settings=wandb.Settings(**settings), **options)
        assert wandb.run is not None
        if mode == "online" and wandb.run.url:
            print_plain(f"tracking {wandb.run.url}")
        offline = f"{Path(wandb.run.dir).parent} (offline; `wandb sync` sends it)"
        self.where = (wandb.run.url or offline) if mode == "online" else offline
        from posttrain.training import wandb_file

        for point in wandb_file.missing(self._run_dir, read(self._run_dir / "metrics.jsonl")):
            wandb.log(point)

    def isolate_callback(self, trainer: Any) -> None:
        """Prevent errors in Transformers' callback of the backend from ending the training."""
        chain = trainer.callback_handler.callbacks
        for i, callback in enumerate(chain):
            if type(callback).__name__ in TRACKERS:
                chain[i] = _IsolatedCallback(callback, self)

    def _start_trackio(self, config: TrackingConfig, run_config: dict[str, Any], group: str | None) -> None:
        import trackio

        self._send = lambda metrics, step: trackio.log({**metrics, "train/global_step": step})
        self._end = lambda: trackio.finish()
        trackio.init(project=config.project, name=self._run_dir.name, group=group, config=run_config, resume="allow")
        self.where = f"`trackio show --project {config.project}`"

    def _start_tensorboard(self, config: TrackingConfig, run_config: dict[str, Any], group: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = str(self._run_dir / "tensorboard")
        os.environ["TENSORBOARD_LOGGING_DIR"] = folder
        writer: Any = SummaryWriter(folder)
        self._send = lambda metrics, step: [writer.add_scalar(name, value, step) for name, value in metrics.items()]
        self._end = writer.close
        self.where = f"`tensorboard --logdir {folder}`"

    def _start_mlflow(self, config: TrackingConfig, run_config: dict[str, Any], group: str | None) -> None:
        import mlflow

        self._send = lambda metrics, step: mlflow.log_metrics(metrics, step=step)
        self._end = mlflow.end_run
        mlflow.set_experiment(config.project)
        run = mlflow.start_run(
            run_name=self._run_dir.name, tags=dict.fromkeys(config.tags, "") | {"group": group or ""}
        )
        self.where = f"MLflow run {run.info.run_id} of experiment {config.project}, {mlflow.get_tracking_uri()}"

    def _start_comet(self, config: TrackingConfig, run_config: dict[str, Any], group: str | None) -> None:
        import comet_ml

        online = None if config.mode == "auto" else config.mode == "online"
        # Transformers' callback uses the running experiment.
        experiment = comet_ml.start(project_name=config.project, workspace=config.entity, online=online)
        self._send = lambda metrics, step: experiment.log_metrics(metrics, step=step)
        self._end = experiment.end
        experiment.set_name(self._run_dir.name)
        experiment.add_tags([*config.tags, *([group] if group else [])])
        experiment.log_parameters(run_config)
        self.where = experiment.url or "Comet, offline"


def _wandb_mode() -> str:
    """Online if this machine has a key for W&B, else offline; asks neither the user nor the server."""
    import wandb

    try:
        wandb.setup(wandb.Settings(silent=True))  # otherwise it asks the server for the user's name, to print it
        return "online" if wandb.login(prompt=False, verify=False) else "offline"
    except Exception:  # a malformed key
        return "offline"


class _IsolatedCallback(TrainerCallback):
    """Transformers' callback of a tracker, which is no longer called once the tracker has failed.

    `Tracker` itself starts and ends a Trackio run: the callback would start another one, in its own project, and end it
    before the last measurements.
    """

    def __init__(self, callback: TrainerCallback, tracker: Tracker):
        self.callback, self.tracker = callback, tracker
        if type(callback).__name__ == "TrackioCallback":
            vars(callback)["_initialized"] = True


def _isolated(event: str) -> Callable[..., None]:
    def call(self: _IsolatedCallback, *args: Any, **kwargs: Any) -> None:
        trackio = type(self.callback).__name__ == "TrackioCallback"
        if not (trackio and event == "on_train_end"):
            self.tracker._without_failing(lambda: getattr(self.callback, event)(*args, **kwargs))

    return call


for _event in (name for name in dir(TrainerCallback) if name.startswith("on_")):
    setattr(_IsolatedCallback, _event, _isolated(_event))


def _tags(run_config: dict[str, Any]) -> list[str]:
    """Tags to filter runs by: the method, and how it was trained."""
    peft = run_config.get("peft", {})
    how = "full" if peft.get("method") == "none" else "qlora" if peft.get("quantization") else peft.get("method")
    return [str(tag) for tag in (run_config.get("trainer", {}).get("kind"), how) if tag]
