"""Exact resumption, for every trainer: a run that was stopped and resumed ends as one that was never stopped.

`Resumable` is mixed into a TRL trainer. Besides Transformers' files, a checkpoint has `progress.json`: the trainer's
state between two logs, and the unfinished work of its step. So a checkpoint can be taken at once when a signal comes;
the process that resumes makes the measurements of that step. The sequence at a step's end is

    log, measure (the probe), evaluate, save; at an epoch's last step then once more: log, evaluate, save

and each part that was started and not finished is repeated. Evaluation has its own random numbers, so it can be
repeated, and training is the same with and without it.

`restore` reads checkpoints, `repeated_prompts` is for repeated prompts, `resume_generation` for steps on a generation.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints
from trl.trainer.utils import RepeatSampler

from posttrain.models.random_state import own_random_state
from posttrain.runs import checkpoint as checkpoints
from posttrain.training import memory
from posttrain.training.signals import Interrupted, Signals

if TYPE_CHECKING:
    from transformers import Trainer

    _Trainer = Trainer
else:
    _Trainer = object


@dataclass
class Pending:
    """The unfinished work at a step's end, and the values that its log needs."""

    measure: bool = False
    evaluate: bool = False
    epoch_end: bool = False
    grad_norm: float | None = None
    learning_rate: float | None = None


class Resumable(_Trainer):
    """Mixed into a trainer; `attach` before `train`. It obeys `signals`."""

    ref_model: Any  # the trainer's own

    records: Sequence[Path] = ()
    measures: Sequence[Any] = ()
    signals = Signals()
    # None: no stop was asked for; True: stop with a checkpoint; False: stop without one.
    stop_asked: bool | None = None
    pending = Pending()
    # The current work and its batch, for the message when memory runs out.
    doing = "loading"
    _sizes: dict[str, int]
    _agreed = _at_epoch_end = False
    _before_the_end: dict[str, Any] | None = None
    _saved_step = -1
    _began = 0.0
    seconds_before = 0.0  # of training, in the processes that a resumed run had before
    _order = torch.Generator()  # seeded at each epoch's begin

    def attach(self, records: Sequence[Path], measures: Sequence[Any]) -> None:
        """Cut the files `records` back on a resume to match the checkpoint, and call `measures` at step ends."""
        self.records, self.measures = records, measures
        self.add_callback(_Boundaries(self))

    def stop(self, save: bool = True) -> None:
        """End training at the next point that it can resume from; with `save=False` at once, without a checkpoint."""
        self.stop_asked = save and self.stop_asked is not False
        self.control.should_training_stop |= self._stops_now

    @property
    def _stops_now(self) -> bool:
        if self.stop_asked is None or self.state.global_step >= self.state.max_steps:
            return False
        return not self.stop_asked or (self.state.global_step > 0 and not self.within_generation)

    @property
    def _interrupted(self) -> bool:
        """Whether a signal has come to this process, or with several is known to all, and training can stop here.

        Training cannot stop within a generation; measurements that are due in it are therefore not interrupted.
        """
        came = self._agreed if self.accelerator.num_processes > 1 else bool(self.signals.number)
        return came and not self.within_generation

    @property
    def within_generation(self) -> bool:
        """Whether later steps will learn from completions that are already generated."""
        return False

    def _metrics_to_log(self, mode: str) -> dict[str, list[float]]:
        """The trainer's metrics for its next log; the attribute differs between TRL's stable and older trainers."""
        if (found := getattr(self, "stats", None)) is not None:  # metrics of training only
            return found if mode == "train" else {}
        found = getattr(self, "_metrics", getattr(self, "_stored_metrics", None))
        return {} if found is None else found[mode]

    def check_signal(self, *_: Any) -> None:
        """Raise `Interrupted` if a signal has come; measurements call this, and are repeated after a resume.

        With several processes it does nothing, since they would wait for each other; they stop at a step's end.
        """
        if self._interrupted and self.accelerator.num_processes == 1:
            raise Interrupted

    def stop_on_signal(self) -> None:
        """Ask for a stop if any process has received a signal."""
        if self.accelerator.num_processes > 1:
            flag = torch.tensor([float(bool(self.signals.number))], device=self.accelerator.device)
            self._agreed = bool(self.accelerator.gather(flag).max() > 0)
        if self._agreed or self.signals.number:
            self.stop()

    # The end of a step

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        end_step = partial(super()._maybe_log_save_evaluate, tr_loss, grad_norm, model, trial, *args, **kwargs)
        first, control = not self._at_epoch_end, self.control
        evaluate, save = control.should_evaluate, control.should_save
        if first:
            norm = None if grad_norm is None else float(grad_norm)
            last = float(self.state.epoch or 0).is_integer() or self.state.global_step >= self.state.max_steps
            self.pending = Pending(True, evaluate, last, norm, kwargs.get("learning_rate"))
        elif self._interrupted:
            self.stop()
            if self._stops_now:
                self._save_checkpoint(model, trial)
            return  # the process that resumes will end the epoch
        elif not (control.should_log or evaluate or save):
            return
        self._note_record_sizes()
        self.control.should_evaluate = self.control.should_save = False
        end_step()
        self._note_record_sizes()
        try:
            self._measure_at_step()
            if evaluate and not self._stops_now and not self._interrupted:
                self.control.should_evaluate, self.control.should_save = True, save
                end_step()
                save = False
            if not first:
                self.pending = replace(self.pending, epoch_end=False)
        except Interrupted:
            self._metrics_to_log("eval").clear()
            self.stop()
            save = True
        if self._stops_now or save:
            self.control.should_training_stop |= self._stops_now
            self.control.should_evaluate, self.control.should_save = False, self.stop_asked is not False
            end_step()
        self.control.should_save = False

    def _measure_at_step(self) -> None:
        if not self.pending.measure:
            return
        for measure in self.measures:
            self.doing = f"the probe, after step {self.state.global_step}"
            if not self._stops_now and not self._interrupted:
                measure.at_step(self.args, self.state, self.control)
        self.pending.measure = self._stops_now or self._interrupted
        if not self.pending.measure:
            self._note_record_sizes()

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        if skip_scheduler and self.state.global_step > 0:
            return {}  # `eval_on_start` of a resumed run
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        self.pending.evaluate = False
        if self._at_epoch_end:
            self.pending.epoch_end = False
        self._note_record_sizes()
        return metrics

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with own_random_state(self.args.seed + self.accelerator.process_index):
            return super().evaluate(*args, **kwargs)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.doing = f"training, after step {self.state.global_step}{memory.describe_batch(inputs)}"
        return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.doing = f"the evaluation, after step {self.state.global_step}{memory.describe_batch(inputs)}"
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Transformers checks for the end, and for a stop, only after a step.
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            self._at_epoch_end = False
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: Any) -> Any:
        if self._interrupted:
            raise Interrupted
        self._note_record_sizes()
        self._before_the_end = self._progress()
        if self.args.load_best_model_at_end or self.state.best_global_step:
            from posttrain.training import restore

            restore.find_best(self, at_end=not self._stops_now)
        return super()._finalize_training(trial, num_train_samples, start_time - self.seconds_before)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler: Any = super()._get_train_sampler(dataset)
        if isinstance(sampler, RepeatSampler):
            from posttrain.training.repeated_prompts import ordered_by_epoch

            return ordered_by_epoch(self, sampler)
        if getattr(sampler, "generator", self) is None:  # torch's own has another state when a later epoch is resumed
            sampler.generator = self._order
        return sampler

    # Checkpoints

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint:
            from posttrain.training.restore import explain_reading

            explain_reading(self)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_last_step_end(self) -> bool:
        """Save a checkpoint of the last step's end, if a signal or a failed reward ended the work after it.

        Returns whether there is a checkpoint of that step. With several processes, a single one cannot save.
        """
        step = self.state.global_step
        if step > 0 and self._saved_step != step and self.accelerator.num_processes == 1:
            self._save_checkpoint(self.model_wrapped, None)
        return self._saved_step == step

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.stop_asked is False or self._saved_step == self.state.global_step:
            return
        args = self.args
        limit, args.save_total_limit = args.save_total_limit, None
        folder = Path(str(args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        finally:
            args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if args.should_save:
            checkpoints.seal(folder)
            if self.state.best_global_step:
                from posttrain.training import restore

                restore.find_best(self)
            # After the new checkpoint is complete, and ordered by step, since clocks can be wrong.
            rotate_checkpoints(str(args.output_dir), limit, self.state.best_model_checkpoint)
        self._saved_step = self.state.global_step

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        for record in self.records:
            if record.is_file():
                with record.open("rb") as file:
                    os.fsync(file.fileno())
        # trainer_state.json is written after this: a checkpoint that has it has this file too.
        path = Path(output_dir) / checkpoints.progress_file(self.args.process_index)
        path.write_text(json.dumps(self._before_the_end or self._progress()), encoding="utf-8")
        if getattr(self.args, "sync_ref_model", False) and self.args.should_save:
            from safetensors.torch import save_model

            save_model(self.accelerator.unwrap_model(self.ref_model), str(Path(output_dir) / checkpoints.REFERENCE))

    def _note_record_sizes(self) -> None:
        """Store the sizes of the records; after a resume, later rows are written again."""
        self._sizes = {path.name: path.stat().st_size if path.is_file() else 0 for path in self.records}

    def _progress(self) -> dict[str, Any]:
        return {
            "pending": asdict(self.pending),
            "records": self._sizes,
            "loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "metrics": {name: [float(v) for v in values] for name, values in self._metrics_to_log("train").items()},
            "tokens": getattr(self, "_total_train_tokens", 0),
            # TRL logs the metrics of the mode that the model is in.
            "training": bool(getattr(self.model, "training", True)),
            "seconds": self.seconds_before + time.time() - self._began,
        }

    def restore_progress(self) -> None:
        """Restore the state in the checkpoint's `progress.json`, and finish its step."""
        self._began = time.time()
        source = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        path = source / checkpoints.progress_file(self.args.process_index)
        if self.state.global_step == 0 or not path.is_file():
            self._note_record_sizes()
            return
        from posttrain.training import restore

        restore.restore(self, path)
        self._note_record_sizes()
        restore.end_step(self)


class _Boundaries(TrainerCallback):
    """Last in the chain: tracks the position of a trainer, and stops it between steps, never within a generation."""

    def __init__(self, trainer: Resumable):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.restore_progress()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._order.manual_seed(args.seed + int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._at_epoch_end = False
        self.trainer.stop_on_signal()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._at_epoch_end = True
        if control.should_training_stop and state.global_step < state.max_steps:
            # Either this is not the epoch's end, or the process that resumes will make its measurements.
            control.should_log = control.should_evaluate = control.should_save = False

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.check_signal()
