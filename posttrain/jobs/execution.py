"""What surrounds the work of every job: waiting for other processes, errors explained, the value of `objective`."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from posttrain.config import schema
from posttrain.config.schema import Origin, Run
from posttrain.console import print_plain
from posttrain.errors import PosttrainError
from posttrain.runs.directory import RunDirectory
from posttrain.training import out_of_memory


@contextmanager
def explain_errors(directory: RunDirectory, fix: str, command: str) -> Iterator[None]:
    """Say what full memory, a full disk, or a reward of the user's that fails means for the run, and how to resume."""
    from safetensors import SafetensorError

    from posttrain.errors import RewardError

    try:
        with out_of_memory.explain_memory_errors(fix):
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
    """Whether a write failed for want of space; safetensors and torch raise their own errors, without a number."""
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


def objective_of(run: Run, directory: RunDirectory) -> float | tuple[float, ...] | None:
    """What a sweep optimises, as `objective` names it."""
    if run.objective is None or directory.record() is None or not schema.main_process():
        return None
    from posttrain.runs import objective_value

    return objective_value.from_metrics(run.objective, lambda one: objective_value.of_run(one, directory))
