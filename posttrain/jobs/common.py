"""Functions shared by the jobs that do not train: the steps of a job, the model to use, `run.json`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.schema import Origin, Run
from posttrain.console import console, main_process, show_status
from posttrain.data.sampled import sampled_runs
from posttrain.errors import PosttrainError
from posttrain.jobs import execution
from posttrain.runs import lineage
from posttrain.runs.directory import RunDirectory
from posttrain.runs.lineage import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run_once(
    run: Run,
    origin: Origin,
    prepare: Callable[[Run], Any],
    work: Callable[[Run, Origin, Any, RunDirectory], None],
    shown: Any,
) -> float | tuple[float, ...] | None:
    """Do `work` with the result of `prepare`, or print that it is done; returns the metric named by `objective`.

    `shown` has `show_plan(run, plan, directory)` and `show(directory)`.
    """
    directory = RunDirectory.of(run, origin)
    if not main_process():
        return None
    if directory.finished():
        console.print(f"[bold]{directory.name}[/] is finished: {directory.path}")
        shown.show(directory)
        return execution.objective_of(run, directory)
    with show_status("Loading libraries, data and tokenizer"):
        plan = prepare(run)
    shown.show_plan(run, plan, directory)
    if run.dry_run:
        return None
    fix = "set a smaller probe.batch_size, sample.batch_size or reward.NAME.args.batch_size"
    with (
        execution.explain_errors(directory, origin.command, fix),
        execution.wait_for_other_jobs(directory, origin),
        directory.claim_for_work() as needed,
    ):
        if needed:
            work(run, origin, plan, directory)
    shown.show(directory)
    return execution.objective_of(run, directory)


def model_source(run: Run, path: str | None = None, key: str | None = None) -> Source:
    """The model that a job uses: `path`, or `model.init_from`, or `model.path`; raises `PosttrainError`.

    A model that is no run is loaded as for the training of an adapter, in the machine's half type and with the config's
    quantization, so that samples for QLoRA come from the weights that it trains on. `model.kwargs`, the attention and
    `trust_remote_code` apply to the model at `model.path`, and to the runs that started from it.
    """
    from posttrain.models import hardware

    name = path or run.model.init_from or run.model.path
    key = key or ("model.init_from" if run.model.init_from else "model.path")
    found = lineage.source(name, run.model.revision if name == run.model.path else None, key)
    if found.run is None:
        quantization = found.quantization or run.peft.quantization
        half = hardware.precision(run.model, replace(run.peft, method="lora"), run.trainer.args)
        found = replace(found, dtype=half.dtype, quantization=quantization)
    folder = str(Path(run.model.path).expanduser().resolve())
    if run.model.path in (found.name, found.base_name) or found.base == folder:
        attention = run.model.attn_implementation
        options = {} if attention == "auto" else {"attn_implementation": attention}
        trust = {"trust_remote_code": True} if run.model.trust_remote_code else {}
        found = replace(found, options={**run.model.kwargs, **options, **trust})
    return found


def tokenizer(run: Run, origin: Source) -> PreTrainedTokenizerBase:
    """The tokenizer of the weights; `model.chat_template` and its tokens apply to the model at `model.path`."""
    from posttrain.models import tokenizers

    own = replace(run.model, path=origin.tokenizer, revision=None if origin.adapter else origin.revision)
    if origin.name != run.model.path:
        own = replace(own, chat_template=None, eos_token=None, pad_token=None)
    return tokenizers.load_tokenizer(own)


def check_context(key: str, new: int, longest: int, context: int | None) -> None:
    if context and longest + new > context:
        raise PosttrainError(
            f"{key}={new}: the longest prompt and its completion take {longest + new} tokens, and the model's context "
            f"is {context}"
        )


def write_start(run: Run, origin: Origin, directory: RunDirectory, used: list[Source], data: dict[str, Any]) -> None:
    """Write `config.yaml` and `run.json`; raises `PosttrainError` where the data has changed since the run began."""
    execution.record_with_same_data(directory, data)
    directory.write_config(run)
    parents = list(zip(("policy", "against"), (source.name for source in used), strict=False))
    entries = {**run.reward, **(run.probe.judges if run.job == "evaluate" else {})}
    parents += [(f"reward.{name}", model) for name, entry in entries.items() for model in entry.models]
    parents += [("data", path) for path in sampled_runs(run.data)]
    directory.write(
        execution.first_record(
            run,
            origin,
            directory,
            job=run.job,
            model={"path": used[0].name, "base": used[0].base, "revision": used[0].revision},
            parents=[lineage.parent_entry(role, path) for role, path in parents],
            data=data,
            seed=run.sample.seed,
            device=device(),
        )
    )


def write_end(directory: RunDirectory, **results: Any) -> None:
    """Complete `run.json` with `results`; the status is `finished` unless `results` has another."""
    ended = {
        "content": directory.content_digest(),
        "status": "finished",
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    directory.write({**(directory.record() or {}), **ended, **results})


def device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
