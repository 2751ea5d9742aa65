"""Resuming from a checkpoint: the trainer's own state, the rest of its step, and errors in files that do not fit."""

import json
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.console import main_process, print_plain
from posttrain.errors import PosttrainError
from posttrain.runs.checkpoint import REFERENCE
from posttrain.runs.metrics import read
from posttrain.training import out_of_memory
from posttrain.training.signals import Interrupted


@contextmanager
def reading(checkpoint: str | None) -> Iterator[None]:
    """In the block, turn an error of reading `checkpoint` into one message that says how the run resumes.

    Truncated and missing files are found earlier (`posttrain.runs.damage`). torch reads only tensors (`weights_only`),
    so a file that holds code is an error here, too.
    """
    try:
        yield
    except PosttrainError:
        raise
    except Exception as error:
        if checkpoint is None or out_of_memory.is_out_of_memory(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        what = "a file holds code instead of tensors" if isinstance(error, pickle.UnpicklingError) else lines[0]
        raise PosttrainError(
            f"{checkpoint}: cannot be continued from: {what}. Remove that folder, and the same command resumes from "
            "the checkpoint before it, or starts again"
        ) from error


def explain_reading(trainer: Any) -> None:
    """Put the steps of `trainer` that read a checkpoint into `reading`; first compare its weights with the adapter."""
    load = trainer._load_from_checkpoint

    def load_weights(checkpoint: str, model: Any = None) -> None:
        _check_weights(trainer.accelerator.unwrap_model(model or trainer.model), Path(checkpoint))
        load(checkpoint, model)

    trainer._load_from_checkpoint = _explained(load_weights)
    trainer._load_optimizer_and_scheduler = _explained(trainer._load_optimizer_and_scheduler)
    trainer._load_rng_state = _explained(trainer._load_rng_state)


def _explained(read: Callable[..., None]) -> Callable[..., None]:
    def explained(checkpoint: str | None, *args: Any) -> None:
        with reading(checkpoint):
            read(checkpoint, *args)

    return explained


def _check_weights(model: Any, checkpoint: Path) -> None:
    """Raise `ValueError` where a checkpoint lacks weights of the adapter; PEFT would silently keep the old values."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    file = checkpoint / "adapter_model.safetensors"
    if not isinstance(model, PeftModel) or not file.is_file():
        return
    with safe_open(file, "pt") as weights:
        missing = get_peft_model_state_dict(model, save_embedding_layers=False).keys() - weights.keys()
    if missing:
        raise ValueError(f"{file.name} lacks {len(missing)} weights of this run's adapter, {min(missing)} among them")


def restore(trainer: Any, progress: Path) -> None:
    """Restore the state of `trainer` from the file `progress` of a checkpoint."""
    with reading(str(progress.parent)):
        known = json.loads(progress.read_text(encoding="utf-8"))
        trainer._saved_step = trainer.state.global_step
        trainer._tr_loss.fill_(known["loss"])
        trainer._total_loss_scalar = known["total_loss"]
        trainer._globalstep_last_logged = known["last_logged"]
        trainer._initial_global_step = 0
        trainer.seconds_before = known["seconds"]
        if hasattr(trainer, "_total_train_tokens"):
            trainer._total_train_tokens = known["tokens"]
        for name, values in known["metrics"].items():
            trainer._metrics_to_log("train")[name] = list(values)
        if (progress.parent / REFERENCE).is_file():
            from safetensors.torch import load_model

            load_model(trainer.accelerator.unwrap_model(trainer.ref_model), str(progress.parent / REFERENCE))
        if trainer.model is not None:
            trainer.model.train(known.get("training", True))
        trainer.pending = replace(trainer.pending, **known["pending"])


def end_step(trainer: Any) -> None:
    """Finish the checkpoint's step: measure, evaluate and end the epoch, as far as this was not done."""
    pending, control = trainer.pending, trainer.control
    try:
        trainer._measure_at_step()
        if pending.evaluate and not trainer._stops_now:
            metrics = trainer._evaluate(None, None)
            trainer._determine_best_metric(metrics=metrics, trial=None)
    except Interrupted:
        trainer._metrics_to_log("eval").clear()
        raise
    if pending.epoch_end and not trainer._stops_now:
        trainer._at_epoch_end = True
        trainer.control = trainer.callback_handler.on_epoch_end(trainer.args, trainer.state, control)
        trainer._maybe_log_save_evaluate(
            *(trainer._tr_loss, pending.grad_norm, trainer.model_wrapped, None, int(trainer.state.epoch or 0)),
            *(None, time.time()),
            learning_rate=pending.learning_rate,
        )
        trainer._at_epoch_end = False


def restore_alarms(alarms: Any) -> None:
    """Read the rows that were logged before a resume into `alarms`, with those that were about to stop the run.

    An alarm stops it again if it also did with the settings of now; after a stop that was reported, these have changed.
    """
    rows = read(alarms.directory.metrics)
    alarms.raised = [row["alarm"] for row in rows if "alarm" in row]
    stops = {(one["name"], one["step"]) for one in alarms.raised if one["action"] == "stop"}
    judged = [one for row in rows if "alarm" not in row for one in alarms.detector.check_row(row)]
    alarms.restored = [one for one in judged if (one.name, one.step) in stops]
    alarms.detector.restore([])


def find_best(trainer: Any, at_end: bool = False) -> None:
    """Note where the best checkpoint is, which Transformers does only within a save; a run can also be moved.

    At the end, `load_best_model_at_end` keeps the last model where there is no such checkpoint, which is said.
    """
    args, state = trainer.args, trainer.state
    best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
    state.best_model_checkpoint = str(best) if best.is_dir() else None
    if not at_end or state.best_model_checkpoint or not args.load_best_model_at_end or not main_process():
        return
    why = f"{best}, the best by {args.metric_for_best_model}, is not there"
    if not state.best_global_step:
        why = f"no evaluation during training had a number for {args.metric_for_best_model}"
    print_plain(
        f"trainer.args.load_best_model_at_end=true: {why}; the model of step {state.global_step} is kept. To get the "
        "best one, set name=OTHER and train again"
    )
