"""What the jobs that use a model without training it share: whose weights, what `run.json` says, what is shown."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain import __version__
from posttrain.config import schema
from posttrain.config.schema import Origin, Run
from posttrain.console import console, print_plain, show_status
from posttrain.data.sampled import sampled_runs
from posttrain.errors import PosttrainError
from posttrain.runs import lineage, objective_value
from posttrain.runs.directory import RunDirectory
from posttrain.runs.lineage import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIBRARIES = ("torch", "trl", "transformers", "peft", "datasets")


def run_once(
    run: Run,
    origin: Origin,
    prepare: Callable[[Run], Any],
    work: Callable[[Run, Origin, Any, RunDirectory], None],
    shown: Any,
) -> float | tuple[float, ...] | None:
    """Do `work` by what `prepare` found, or say that it is done; returns the metric named by `objective`.

    `shown` has `show_plan(run, plan, directory)` and `show(directory)`.
    """
    directory = RunDirectory.of(run, origin)
    if not schema.main_process():
        return None
    if directory.finished():
        console.print(f"[bold]{directory.name}[/] is finished: {directory.path}")
        shown.show(directory)
        return objective_of(run, directory)
    with show_status("Loading libraries, data and tokenizer"):
        plan = prepare(run)
    shown.show_plan(run, plan, directory)
    if run.dry_run:
        return None
    fix = "set a smaller probe.batch_size, sample.batch_size or reward.NAME.args.batch_size"
    with (
        explain_errors(directory, fix, origin.command),
        wait_for_other_jobs(directory, origin),
        directory.claim_for_work() as needed,
    ):
        if needed:
            work(run, origin, plan, directory)
    shown.show(directory)
    return objective_of(run, directory)


def model_source(run: Run, path: str | None = None, key: str | None = None) -> Source:
    """The model that a job uses: `path`, or `model.init_from`, or `model.path`; raises `PosttrainError`.

    A model outside runs is loaded as the config would load it to train an adapter, in the machine's half type and with
    its quantization, so that samples for QLoRA come from the weights that it trains on. `model.kwargs`, attention and
    trust in its code are of the model at `model.path`, and of the runs that began with it.
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
        found = replace(found, options={**run.model.kwargs, **options, **_trust(run)})
    return found


def _trust(run: Run) -> dict[str, Any]:
    return {"trust_remote_code": True} if run.model.trust_remote_code else {}


def tokenizer(run: Run, origin: Source) -> PreTrainedTokenizerBase:
    """The tokenizer of the weights; `model.chat_template` and its tokens are those of the model at `model.path`."""
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


@contextmanager
def explain_memory_errors(fix: str) -> Iterator[None]:
    """Say in one message what a failure to get memory means."""
    from posttrain.training import memory

    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not memory.is_out_of_memory(error):
            raise
        raise PosttrainError(memory.out_of_memory_message(error, fix)) from error


@contextmanager
def explain_errors(directory: RunDirectory, fix: str, command: str) -> Iterator[None]:
    """Say what full memory, a full disk, or a reward of the user's that fails means for the run, and how it goes on."""
    from safetensors import SafetensorError

    from posttrain.errors import RewardError

    try:
        with explain_memory_errors(fix):
            yield
    except RewardError as error:
        raise PosttrainError(f"{error}\nFinished work is kept, and the same command resumes: {command}") from error
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _disk_full(error, directory.path):
            raise
        last = directory.last_checkpoint()
        raise PosttrainError(
            f"{directory.path}: No space left on device; the last whole checkpoint is {last.name if last else 'none'}. "
            "Free some space; the same command resumes from there"
        ) from error


def _disk_full(error: Exception, folder: Path) -> bool:
    """Whether a write failed for want of space; safetensors and torch raise errors of their own, without a number."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return "No space left" in str(error) or (not isinstance(error, OSError) and shutil.disk_usage(there).free < 1 << 20)


def wait_for_other_jobs(directory: RunDirectory, origin: Origin) -> AbstractContextManager[None]:
    """Jobs of two sweeps that meet on one run wait for each other; a run that is called by itself does not wait."""
    if origin.sweep_dir is None or not schema.main_process():
        return nullcontext()
    said: list[str] = []

    def waiting() -> None:
        if not said:
            said.append(f"{directory.name}: another process is running it; waiting for it")
            print_plain(said[0])

    return directory.wait_until_free(waiting)


def write_start(run: Run, origin: Origin, directory: RunDirectory, used: list[Source], data: dict[str, Any]) -> None:
    """Write `config.yaml` and `run.json`; raises `PosttrainError` where the data is not what it was."""
    before = directory.record()
    if before and before["data"]["fingerprint"] != data["fingerprint"]:
        raise PosttrainError(
            f"{directory.path}: the data has changed since this run began (fingerprint "
            f"{before['data']['fingerprint']}, now {data['fingerprint']}); set name=OTHER to begin a new run"
        )
    directory.write_config(run)
    parents = list(zip(("policy", "against"), (source.name for source in used), strict=False))
    entries = {**run.reward, **(run.probe.judges if run.job == "evaluate" else {})}
    parents += [(f"reward.{name}", model) for name, entry in entries.items() for model in entry.models]
    parents += [("data", path) for path in sampled_runs(run.data)]
    directory.write(
        {
            "status": "running",
            "job": run.job,
            "name": directory.name,
            "command": origin.command,
            "recipe": origin.recipe,
            "trainer": run.trainer.kind,
            "model": {"path": used[0].name, "base": used[0].base, "revision": used[0].revision},
            "parents": [lineage.parent_entry(role, path) for role, path in parents],
            "data": data,
            "seed": run.sample.seed,
            "hardware": {"device": device(), "cpus": os.cpu_count(), "machine": platform.machine()},
            "versions": {
                "posttrain": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in LIBRARIES},
            },
            "started": (before or {}).get("started") or time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
    )


def write_end(directory: RunDirectory, **results: Any) -> None:
    """Complete `run.json` and mark the run finished, or what `results` has as its `status`."""
    ended = {
        "content": directory.content_digest(),
        "status": "finished",
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    directory.write({**(directory.record() or {}), **ended, **results})


def device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def objective_of(run: Run, directory: RunDirectory) -> float | tuple[float, ...] | None:
    """What a sweep optimises, as `objective` names it."""
    if not schema.main_process():
        return None
    return objective_value.from_metrics(run.objective, lambda one: objective_value.of_run(one, directory))
