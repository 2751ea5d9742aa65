"""The callback that prints alarms, stores them in `run.json` and `metrics.jsonl`, sends them, and acts on them."""

from dataclasses import asdict
from typing import Any

import torch
from rich.markup import escape
from transformers import TrainerCallback

from posttrain.config.alarms import AlarmsConfig, setting
from posttrain.console import console, main_process
from posttrain.runs.directory import RunDirectory
from posttrain.runs.metrics import read
from posttrain.training import sharding
from posttrain.training.alarms import Alarm, AlarmDetector
from posttrain.training.metrics_log import NoTracker, append


class Alarms(TrainerCallback):
    """`stopped` is the alarm that ends the training, or None; `ended` whether it ended before the last step."""

    def __init__(self, config: AlarmsConfig, tracker: NoTracker, directory: RunDirectory):
        self.config = config
        self.tracker = tracker
        self.directory = directory
        self.detector = AlarmDetector(config)
        self.raised: list[dict[str, Any]] = []
        self.stopped: Alarm | None = None
        self.trainer: Any = None
        self.trained: list[torch.Tensor] | None = None

    def restore(self) -> None:
        """Read the rows that were logged before a resume."""
        rows = read(self.directory.metrics)
        self.detector.restore([row for row in rows if "alarm" not in row])
        self.raised = [row["alarm"] for row in rows if "alarm" in row]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.detector.float16 = args.fp16
        if state.is_world_process_zero and self.raised:
            self._write_alarms()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.check_row({"step": state.global_step, **(logs or {})}, args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights_not_finite(args, state, control)

    def check_row(self, row: dict[str, Any], args: Any, state: Any, control: Any) -> None:
        """Raise the alarms of a row; every process must call this at the same point."""
        alarms = self.detector.check_row(row) if state.is_world_process_zero else []
        for alarm in alarms:
            self._announce(alarm)
        self._act(next((alarm for alarm in alarms if alarm.action == "stop"), None), args, state, control)

    def _act(self, alarm: Alarm | None, args: Any, state: Any, control: Any) -> None:
        if self.trainer.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            (alarm,) = broadcast_object_list([alarm])
        # A non-finite loss takes precedence over other alarms, since the weights are lost.
        if alarm is not None and (self.stopped is None or alarm.name == "non_finite"):
            self.stopped = alarm
            # With a checkpoint, unless the model is broken.
            self.trainer.stop(save=alarm.name != "non_finite")

    @property
    def ended(self) -> bool:
        state = self.trainer.state
        return self.stopped is not None and (self.stopped.name == "non_finite" or state.global_step < state.max_steps)

    def weights_not_finite(self, args: Any, state: Any, control: Any) -> bool:
        """Whether a trained weight is not finite, which raises the alarm; one pass over the trained weights."""
        accelerator = self.trainer.accelerator
        if self.trained is None:  # collected once, since the search takes longer than the pass
            self.trained = [p for p in self.trainer.model.parameters() if p.requires_grad]
        norm = sharding.whole(torch.nn.utils.get_total_norm([sharding.own_part(p) for p in self.trained]))
        found = not accelerator.gather(norm.float().to(accelerator.device)).isfinite().all()
        if found and self.config.non_finite.action != "off" and "non_finite" not in self.detector.ringing:
            self.detector.ringing.add("non_finite")
            message = (
                "the weights are no numbers any more; lower trainer.args.learning_rate, or look at the data before"
            )
            alarm = Alarm("non_finite", state.global_step, None, self.config.non_finite.action, message)
            if state.is_world_process_zero:
                self._announce(alarm)
            self._act(alarm if alarm.action == "stop" else None, args, state, control)
        return found

    def _announce(self, alarm: Alarm) -> None:
        colour = "red" if alarm.action == "stop" else "yellow"
        console.print(
            f"[bold {colour}]alarm[/]    step {alarm.step}, {alarm.name}: {escape(alarm.message)}", soft_wrap=True
        )
        found = {"name": alarm.name, "step": alarm.step, "value": alarm.value, "action": alarm.action}
        self.raised.append({**found, "message": alarm.message})
        append(self.directory.metrics, {"step": alarm.step, "alarm": self.raised[-1]})
        if alarm.value is not None:
            self.tracker.log({f"alarm/{alarm.name}": alarm.value}, alarm.step)
        if alarm.action in ("alert", "stop"):
            self.tracker.alert(f"{self.directory.name}: {alarm.name}", alarm.message)
        self._write_alarms()

    def _write_alarms(self) -> None:
        self.directory.write({**(self.directory.record() or {}), "alarms": self.raised})

    def record_stop(self) -> dict[str, Any]:
        """Write the alarm that stopped the run into `run.json`; returns that entry."""
        assert self.stopped is not None
        last = self.directory.last_checkpoint()
        entry = {
            **{k: v for k, v in asdict(self.stopped).items() if k not in ("name", "action")},
            "alarm": self.stopped.name,
            "setting": setting(self.config, self.stopped.name),
            "checkpoint": str(last.relative_to(self.directory.path)) if last else None,
        }
        if main_process():
            self.directory.write({**(self.directory.record() or {}), "status": "stopped", "stopped": entry})
        return entry
