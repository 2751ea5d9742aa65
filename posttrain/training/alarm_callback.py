"""The callback that looks for alarms, and stops the training for those that ask for it."""

from typing import Any

import torch
from transformers import TrainerCallback

from posttrain.config.alarms import AlarmsConfig
from posttrain.runs.directory import RunDirectory
from posttrain.training.alarms import Alarm, AlarmDetector
from posttrain.training.metrics_log import NoTracker


class Alarms(TrainerCallback):
    """`stopped` is the alarm that ends the training; `broken`: the model is lost; `ended`: before the last step."""

    def __init__(self, config: AlarmsConfig, tracker: NoTracker, directory: RunDirectory):
        self.config = config
        self.tracker = tracker
        self.directory = directory
        self.detector = AlarmDetector(config)
        self.raised: list[dict[str, Any]] = []
        self.restored: list[Alarm] = []  # these stop a run that was killed before it stopped
        self.stopped: Alarm | None = None
        self.broken = False
        self.trainer: Any = None
        self.trained: list[torch.Tensor] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.detector.float16 = args.fp16
        if state.is_world_process_zero and self.raised:
            from posttrain.training.raised_alarms import write_alarms

            write_alarms(self.raised, self.directory)
        self._stop(self.restored)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.check_row({"step": state.global_step, **(logs or {})})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights_not_finite()

    def check_row(self, row: dict[str, Any]) -> None:
        """Raise the alarms of a row; every process must call this at the same point."""
        self._act(self.detector.check_row(row) if self.trainer.is_world_process_zero() else [])

    def _act(self, alarms: list[Alarm]) -> None:
        """Announce the alarms, and stop the training if one of them asks for it; only the main process has alarms."""
        if alarms:
            from posttrain.training.raised_alarms import announce, write_alarms

            for one in alarms:
                self.raised.append(announce(one, self.directory, self.tracker))
                write_alarms(self.raised, self.directory)
        self._stop(alarms)

    def _stop(self, alarms: list[Alarm]) -> None:
        alarm = next((one for one in alarms if one.action == "stop"), None)
        if self.trainer.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            (alarm,) = broadcast_object_list([alarm])
        # A non-finite loss takes precedence over other alarms, since the weights are lost.
        if alarm is not None and (self.stopped is None or alarm.name == "non_finite"):
            self.stopped = alarm
            self.broken = alarm.name == "non_finite" and alarm.value is None
            self.trainer.stop(save=not self.broken)

    @property
    def ended(self) -> bool:
        state = self.trainer.state
        return self.stopped is not None and (self.broken or state.global_step < state.max_steps)

    def weights_not_finite(self) -> bool:
        """Whether a trained weight is not finite, which raises the alarm; one pass over the trained weights."""
        accelerator = self.trainer.accelerator
        if self.trained is None:  # collected once, since the search takes longer than the pass
            self.trained = [p for p in self.trainer.model.parameters() if p.requires_grad]
        # DeepSpeed keeps this process's part of a parameter beside it; FSDP's norm is still a sum over all processes.
        norm: Any = torch.nn.utils.get_total_norm([getattr(p, "ds_tensor", p).detach() for p in self.trained])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        found = not accelerator.gather(norm.float().to(accelerator.device)).isfinite().all()
        if found and self.config.non_finite.action != "off" and "non_finite" not in self.detector.ringing:
            self.detector.ringing.add("non_finite")
            message = "the weights are no numbers any more; lower trainer.args.learning_rate, or look at the data"
            step, action = self.trainer.state.global_step, self.config.non_finite.action
            alarm = Alarm("non_finite", step, None, action, message)
            self._act([alarm] if self.trainer.is_world_process_zero() else [])
        return found
