"""Train one run: claim its directory, prepare, train or continue, measure, save, report."""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config import options, schema, trainers
from posttrain.config.schema import Origin, Run
from posttrain.console import console, main_process, print_plain, quiet_libraries, show_status
from posttrain.errors import PosttrainError
from posttrain.jobs import execution, train_plan
from posttrain.models import start
from posttrain.runs.directory import RunDirectory
from posttrain.training.alarms import stop_message, stopped_run_message

if TYPE_CHECKING:
    from posttrain.training.alarm_callback import Alarms
    from posttrain.training.metrics_log import NoTracker
    from posttrain.training.progress import ProgressBar

# Checkpoints that are kept by default (trainer.args.save_total_limit): the last, and one before in case it is damaged.
CHECKPOINTS_KEPT = 2


def train(run: Run, origin: Origin) -> float | tuple[float, ...] | None:
    """Train, resume, or print that the run is finished; returns the metric named by `objective`."""
    quiet_libraries()
    from posttrain.runs import summary

    directory = RunDirectory.of(run, origin)
    if stopped := stopped_run_message(directory.record(), run.alarms):
        raise PosttrainError(stopped)
    if directory.finished():
        console.print(f"[bold]{directory.name}[/] is finished: {directory.path}")
        console.print("To train it again, set name=OTHER or trainer.args.seed=N, or remove that folder.")
        summary.show(directory)
        return execution.objective_of(run, directory)
    with show_status("Loading libraries, data and tokenizer"):
        plan = replace(train_plan.prepare(run, directory.path), left_out=origin.left_out)
    train_plan.show_plan(run, plan, directory)
    if run.dry_run:
        return None
    work = directory.claim_for_work() if main_process() else nullcontext(True)
    with (
        execution.explain_errors(directory, origin.command),
        execution.wait_for_other_jobs(directory, origin),
        work as needed,
    ):
        if needed:
            if stopped := stopped_run_message(directory.record(), run.alarms):  # another process may have stopped it
                raise PosttrainError(stopped)
            _train(run, origin, plan, directory)
    if main_process():
        summary.show(directory)
    return execution.objective_of(run, directory)


def _train(run: Run, origin: Origin, plan: train_plan.Plan, directory: RunDirectory) -> None:
    from posttrain.training.alarm_callback import Alarms
    from posttrain.training.progress import ProgressBar
    from posttrain.training.signals import StopOnSignal

    started = time.time()
    damaged = directory.remove_damaged_checkpoints() if main_process() else []
    checkpoint = directory.last_checkpoint()
    for line in damaged:
        print_plain(f"{line}; resuming from {checkpoint.name if checkpoint else 'the start'}")
    if main_process():
        _start(run, origin, plan, directory, checkpoint)
    tracker = _tracker(run, origin, directory)
    try:
        alarms = Alarms(run.alarms, tracker, directory)
        if checkpoint and main_process():
            from posttrain.training.restore import restore_alarms

            restore_alarms(alarms)
        bar, interrupt = ProgressBar(directory.name), StopOnSignal()
        trainer = _trainer(run, plan, directory, tracker, bar, alarms)
        trainer.signals = interrupt
        with interrupt:
            try:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
                if not alarms.ended:
                    _evaluate_at_end(plan, trainer)
            except Exception as error:
                from posttrain.jobs import failures

                if (explained := failures.explain_training(error, trainer, directory, origin.command)) is None:
                    raise
                raise explained from error
            finally:
                bar.close()
        if alarms.stopped and alarms.ended:
            from posttrain.training.raised_alarms import record_stop

            trainer.accelerator.wait_for_everyone()
            raise PosttrainError(stop_message(record_stop(alarms.stopped, run.alarms, directory)))
        if not trainer.state.global_step:
            raise PosttrainError("no step was made, since the rows that are left fill no batch; nothing is saved")
        _finish(run, plan, directory, trainer, tracker, started)
    finally:
        tracker.finish()


def _tracker(run: Run, origin: Origin, directory: RunDirectory) -> NoTracker:
    from posttrain.training.metrics_log import NoTracker

    if run.tracking.backend == "none" or not main_process():
        return NoTracker()
    from posttrain.training.tracking import Tracker

    group = origin.sweep_dir.name if origin.sweep_dir else None
    return Tracker(run.tracking, directory.path, schema.used_settings(asdict(run)), group)


def _trainer(
    run: Run, plan: train_plan.Plan, directory: RunDirectory, tracker: NoTracker, bar: ProgressBar, alarms: Alarms
) -> Any:
    """The trainer with its callbacks: progress, alarms, the user's, the measurements, and the log."""
    from posttrain.training import memory, sharding
    from posttrain.training.metrics_log import Metrics

    if plan.precision.device == "CPU":
        memory.keep_freed_memory()

    functions: dict[str, Any] = {}
    shared: str | None = None
    if run.reward:
        from posttrain.training import online

        functions, shared = online.reward_functions(run)
    measures: list[Any] = [alarms]
    if plan.probe_texts is not None or run.probe.shift_prompts:
        from posttrain.probe import measurements

        inputs = (plan.data, plan.probe_texts, plan.tokenizer)
        measures = [*measurements.callbacks(run, *inputs, directory, tracker, functions, alarms), alarms]
    with show_status("Loading the model"):
        if plan.start.merge is not None:
            from posttrain.models.merge import merge_parent

            merged = merge_parent(plan.start.merge, Path(plan.start.base))
            if main_process():
                directory.write({**(directory.record() or {}), "merge": merged})
        own: list[Any] = []
        if run.trainer.callbacks:
            from posttrain.training import trainer_arguments

            own = trainer_arguments.user_callbacks(run)
        trainer = _build(run, plan, directory, tracker, functions, [bar, *own, *measures])
        if run.trainer.callbacks:
            trainer.callback_handler.callbacks[:0] = reversed(trainer_arguments.user_callbacks(run, trainer))
    sharding.check_running(run.trainer.args, trainer.accelerator.distributed_type.name)
    bar.show_evaluations(trainer)
    for measure in measures:
        measure.trainer = trainer
        if shared and shared not in functions and hasattr(measure, "judge"):
            measure.judge.functions = {shared: trainer.reward_funcs[0], **measure.judge.functions}
    beta = trainer.args.beta if trainers.of(run.trainer.kind).is_a("DPOTrainer", "KTOTrainer") else None
    tracker.isolate_callback(trainer)
    trainer.callback_handler.callbacks.insert(0, Metrics(directory.metrics, beta))
    trainer.attach((directory.metrics, directory.samples), [one for one in measures if hasattr(one, "at_step")])
    return trainer


def _build(
    run: Run,
    plan: train_plan.Plan,
    directory: RunDirectory,
    tracker: Any,
    functions: dict[str, Any],
    callbacks: list[Any],
) -> Any:
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from posttrain.models import architecture
    from posttrain.training import build
    from posttrain.training.parts import Parts

    known = architecture.load_config(run.model, plan.start.config, plan.start.revision)
    shared = adjust = None
    if trainers.is_ppo(run):
        from posttrain.training import online

        shared, adjust = online.shared_reward_adjustment(run)
    # The reward on PPO's base comes first, as in the trainer.
    entries = sorted(run.reward.items(), key=lambda item: not shared or item[0] != shared[0])
    extra_arguments: dict[str, Any] = {}
    if run.trainer.has_objects:
        from posttrain.training import trainer_arguments

        extra_arguments = trainer_arguments.constructor_arguments(run, plan.precision.dtype)
    adapters: dict[str, Any] = {"lora": None, "quantization": None}
    if run.peft.method != "none":
        from posttrain.models import adapter

        adapters = adapter.trainer_parts(run.peft, run.trainer.kind, architecture.keeps_senses(known))
    parts = Parts(
        model=plan.start.base,
        args=trainer_args(run, plan, directory, tracker.report_to),
        tokenizer=plan.tokenizer,
        train=plan.data.train,
        eval=plan.data.eval,
        weighted=plan.data.weighted,
        extra_arguments=extra_arguments,
        share_prompts=run.trainer.share_prompts,
        sees=architecture.sees(known),
        callbacks=callbacks,
        rewards=functions,
        reward_weights=[entry.weight for _, entry in entries],
        adapter=plan.start.adapter,
        reward_adapter=shared,
        reward_adjustment=adjust,
        **adapters,
    )
    try:
        trainer = build.build(run.trainer.kind, parts)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        # TRL's and PEFT's own checks of options, data and packages; their messages name what is wrong.
        raise PosttrainError(f"trainer={run.trainer.kind}: {error}") from error
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def trainer_args(run: Run, plan: train_plan.Plan, directory: RunDirectory, report_to: str) -> dict[str, Any]:
    """The options of the TRL config class: the user's, and those that posttrain decides."""
    from posttrain.models import hardware

    kind = trainers.of(run.trainer.kind)
    known = options.options_of(kind.config)
    init_kwargs = hardware.init_kwargs(run.model, plan.precision, plan.start.revision)
    if kind.own_attention and run.model.attn_implementation == "auto":
        del init_kwargs["attn_implementation"]
    ours: dict[str, Any] = {
        "output_dir": str(directory.checkpoints),
        "report_to": report_to,
        "run_name": directory.name,
        "project": run.tracking.project,
        "model_init_kwargs": init_kwargs,
        "trust_remote_code": run.model.trust_remote_code,
        "disable_tqdm": True,
        "save_total_limit": CHECKPOINTS_KEPT,
        "eval_strategy": "epoch" if plan.data.eval is not None else "no",
        "eval_on_start": plan.data.eval is not None,
        "logging_nan_inf_filter": False,  # true would replace a NaN loss in the log
        "logging_steps": _logging_steps(run, plan.steps),
        "dataloader_pin_memory": plan.precision.device != "CPU",
    }
    args: dict[str, Any] = {
        # The model is loaded by `posttrain.training.build` where the trainer has no such option.
        **{name: value for name, value in ours.items() if name in known or name == "model_init_kwargs"},
        **run.trainer.args,
        # `precision` follows the user's choice; `bf16: null` would be TRL's default, not the machine's best.
        "use_cpu": plan.precision.device == "CPU",
        "bf16": plan.precision.bf16,
        "fp16": plan.precision.fp16,
    }
    if plan.data.eval is None or not kind.evaluates:
        args.update(eval_strategy="no", eval_on_start=False)
    return args


def _logging_steps(run: Run, steps: int) -> int:
    """TRL's 10, or fewer in a short run, so that its curves have some twenty points."""
    # Without their own interval, evaluations have that of the logs.
    follows = run.trainer.args.get("eval_strategy") == "steps" and run.trainer.args.get("eval_steps") is None
    return 10 if follows else max(1, min(10, steps // 20))


def _start(run: Run, origin: Origin, plan: train_plan.Plan, directory: RunDirectory, checkpoint: Path | None) -> None:
    """Write `config.yaml` and `run.json`, and cut the logs back to the checkpoint."""
    execution.record_with_same_data(directory, plan.data.source)  # raises where the data has changed
    directory.rewind(checkpoint)
    directory.write_config(run)
    directory.write_prompts(plan.data.held_out_prompts())
    directory.write_skipped(plan.data.skipped_files)
    directory.write(
        execution.first_record(
            run,
            origin,
            directory,
            model={
                "path": run.model.path,
                "revision": run.model.revision,
                "commit": start.model_commit(run),
                "parameters": plan.parameters[0],
            },
            base=start.base_record(run, plan.start, directory.path, plan.precision.dtype),
            adapter=run.peft.lora if run.peft.method == "lora" else None,
            quantization=run.peft.quantization or None,
            parents=start.parents(run, plan.start),
            data=plan.data.source,
            seed=run.trainer.args.get("seed", 42),
            precision=str(plan.precision),
            device=plan.precision.device,
        )
    )


def _finish(
    run: Run, plan: train_plan.Plan, directory: RunDirectory, trainer: Any, tracker: Any, started: float
) -> None:
    """Save the model and the curves, then set `status: finished`."""
    from posttrain.runs import curves, metrics
    from posttrain.runs.card import write_card

    temporary = directory.path / "model.incomplete"
    if main_process():
        shutil.rmtree(temporary, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(temporary))  # called by every process, since sharded weights are gathered
    trainer.accelerator.wait_for_everyone()
    if not main_process():
        return
    directory.write_skipped(plan.data.skipped_files)  # a stream finds skipped rows only while it is read
    record = directory.record() or {}
    record["steps"] = trainer.state.global_step
    record["metrics"] = metrics.final_metrics(directory.metrics)
    record["seconds"] = round(trainer.seconds_before + time.time() - started, 1)
    record["tracking"] = tracker.where

    # training_args.bin is a pickle, and config.yaml has its content. Value function, reference and a reward on the
    # policy's base are needed for training only, and checkpoints have them.
    for name in ("training_args.bin", "value_head.safetensors", "ppo_state.json"):
        (temporary / name).unlink(missing_ok=True)
    for name in ("value", "ref", "reward", "teacher"):
        shutil.rmtree(temporary / name, ignore_errors=True)
    plan.tokenizer.save_pretrained(temporary)
    write_card(temporary, run, record, directory.metrics)
    directory.put(temporary, directory.model)
    record["content"] = directory.content_digest()
    curves.draw_curves(directory.metrics, directory.curves, directory.name)
    record["status"] = "finished"
    record["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    directory.write(record)


def _evaluate_at_end(plan: train_plan.Plan, trainer: Any) -> None:
    """Evaluate the trained model, unless this was done or evaluations are off."""
    args, state = trainer.args, trainer.state
    step = state.best_global_step if args.load_best_model_at_end and state.best_model_checkpoint else state.global_step
    done = any(row["step"] == step == state.global_step and "eval_loss" in row for row in state.log_history)
    if plan.data.eval is not None and not done and (args.eval_strategy != "no" or args.eval_on_start):
        trainer.evaluate()
