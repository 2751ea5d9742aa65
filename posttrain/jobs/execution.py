"""Steps shared by all jobs: waiting for other processes, `run.json`, explained errors, the value of `objective`."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import Any

from posttrain import __version__
from posttrain.config.schema import Origin, Run
from posttrain.console import main_process
from posttrain.errors import PosttrainError
from posttrain.runs.directory import RunDirectory

LIBRARIES = ("torch", "trl", "transformers", "peft", "datasets", "accelerate", "bitsandbytes")


@contextmanager
def explain_errors(directory: RunDirectory, command: str, memory_fix: str | None = None) -> Iterator[None]:
    """In the block, explain full memory, a full disk, or a failed user's reward, and how to resume the run."""
    try:
        yield
    except Exception as error:
        from posttrain.jobs import failures

        if (message := failures.explain(error, directory, command, memory_fix)) is None:
            raise
        raise PosttrainError(message) from error


def wait_for_other_jobs(directory: RunDirectory, origin: Origin) -> AbstractContextManager[None]:
    """In a sweep, wait for another process that works on the same run; a single run does not wait."""
    if origin.sweep_dir is None or not main_process():
        return nullcontext()
    from posttrain.runs.waiting import wait_until_free

    return wait_until_free(directory, f"{directory.name}: another process is running it")


def record_with_same_data(directory: RunDirectory, data: dict[str, Any]) -> dict[str, Any] | None:
    """`run.json` of a run that resumes, else None; raises `PosttrainError` where the data has changed since."""
    before = directory.record()
    if before and before["data"]["fingerprint"] != data["fingerprint"]:
        raise PosttrainError(
            f"{directory.path}: the data has changed since this run began (fingerprint "
            f"{before['data']['fingerprint']}, now {data['fingerprint']}); set name=OTHER to begin a new run"
        )
    return before


def first_record(run: Run, origin: Origin, directory: RunDirectory, device: str, **facts: Any) -> dict[str, Any]:
    """`run.json` of a run that starts or resumes its work; `facts` are the job's own entries."""
    return {
        "status": "running",
        "name": directory.name,
        "command": origin.command,
        "recipe": origin.recipe,
        "trainer": run.trainer.kind,
        **facts,
        "hardware": {"device": device, "cpus": os.cpu_count(), "machine": platform.machine()},
        "versions": {
            "posttrain": __version__,
            "python": platform.python_version(),
            **{library: version(library) for library in LIBRARIES},
        },
        "started": (directory.record() or {}).get("started") or time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def objective_of(run: Run, directory: RunDirectory) -> float | tuple[float, ...] | None:
    """The value that a sweep optimises, as `objective` names it."""
    if run.objective is None or directory.record() is None or not main_process():
        return None
    from posttrain.runs import objective_value

    return objective_value.from_metrics(run.objective, lambda one: objective_value.of_run(one, directory))
