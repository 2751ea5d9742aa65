"""Sweeps by Hydra multirun: a record of every job, and at the end the failed ones by name."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from posttrain.config import data_override
from posttrain.config.parse import origin, parse
from posttrain.config.schema import Origin
from posttrain.console import print_error, print_plain
from posttrain.errors import PosttrainError, first_line
from posttrain.runs.directory import RunDirectory
from posttrain.runs.metrics import read

# Where this process's sweep keeps its record; `None` outside a sweep.
current: Path | None = None


def run(words: list[str], entry: Callable[[], object], errors: Sequence[str]) -> int:
    """Run the jobs of the sweep `words` by Hydra's `entry`; returns the exit code. `errors` are known already."""
    grid = of_grid(words)
    if wrong := check(grid):
        print_error("\n".join(dict.fromkeys([*errors, *wrong])))
        return 1
    sys.argv[1:] = [*arguments(words), f"+hydra.callbacks.record._target_={__name__}.Record"]
    try:
        entry()
    finally:
        report(grid)
    return 0


class Record(Callback):
    """Writes `jobs.jsonl` in the sweep's folder, a line per job, from whichever process ran it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global current
        current = Path(config.hydra.sweep.dir).absolute()

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        job = origin(config.hydra)
        if job.sweep_dir is not None:
            _append(job.sweep_dir / "started.jsonl", {"command": job.command})
            print_plain(f"\njob {config.hydra.job.num + 1}    {job.command}")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        job = origin(config.hydra)
        if job.sweep_dir is None:
            return
        failed = job_return.status is JobStatus.FAILED
        row = {
            "command": job.command,
            "status": "failed" if failed else "finished",
            "objective": None if failed else job_return.return_value,
            "error": first_line(job_return._return_value) if failed else None,
            "run": None if failed else _directory(job_return.cfg, job),
        }
        _append(job.sweep_dir / "jobs.jsonl", row)


def _append(path: Path, row: dict[str, Any]) -> None:
    """Append a line with a single write, so that lines of several processes do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(row) + "\n").encode())


def _directory(cfg: Any, job: Origin) -> str:
    """The run directory of a job; the sweep's own folder holds only this record."""
    run = parse(cfg)
    data_override.reset_settings(run, job.overrides)
    return str(RunDirectory.of(run, job).path)


def of_grid(words: list[str]) -> list[tuple[str, ...]]:
    """The settings of each job of a grid; [] for another sweeper, a user's own config folder, or unreadable words."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    elsewhere = ("hydra/sweeper", "hydra.sweeper", "hydra.searchpath", "--config-", "-cd")
    if any(word.startswith(elsewhere) for word in words):
        return []
    own = [word for word in words if not word.startswith("-") and not word.lstrip("+~").startswith("hydra")]
    try:
        batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(own), None)
    except HydraException:
        return []  # Hydra will report the error
    return [tuple(job) for batch in batches for job in batch]


def check(grid: list[tuple[str, ...]]) -> list[str]:
    """The errors of a grid of which no job would start; checked here because Hydra first creates a folder."""
    from posttrain.jobs import preflight
    from posttrain.pipeline import overrides

    found: list[str] = []
    for job in grid:
        try:
            preflight.check(overrides.run_of(job))
        except PosttrainError as error:
            found += str(error).splitlines()
        else:
            return []
    return found


def report(grid: list[tuple[str, ...]]) -> None:
    """Print the command of every job that did not finish in the sweep that has just ended, or in its `grid`."""
    if current is None:
        return
    rows, started = (read(current / name) for name in ("jobs.jsonl", "started.jsonl"))
    failed = [row for row in rows if row["status"] == "failed"]
    # A job that was killed, or stopped by a signal, has begun and not ended.
    ended, begun = (Counter(row["command"] for row in some) for some in (rows, started))
    stopped = list((begun - ended).elements())
    waiting = [command for job in grid if (command := Origin(None, job, None).command) not in begun + ended]
    if not rows and not stopped:
        return
    known = len(rows) + len(stopped) + len(waiting)
    print_error(f"sweep    {len(rows) - len(failed)} of {known} jobs finished: {current}")
    for row in failed:
        print_error(f"failed   {row['command']}\n         {row['error']}")
    for word, commands in (("stopped", stopped), ("waiting", waiting)):
        for command in commands:
            print_error(f"{word}  {command}")
    if stopped or waiting:
        print_error("The command of the sweep resumes: finished jobs are reused, stopped ones continue")


def arguments(argv: list[str]) -> list[str]:
    """`argv` with further settings of a sweep: its own folder, and an Optuna search that survives a failed trial."""
    # After a pool's worker was killed, Python's resource tracker would warn of leaked objects.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    more = []
    if not any(word.startswith("hydra.sweep.dir=") for word in argv):
        # With the process id, since two sweeps may start in the same second.
        more.append("hydra.sweep.dir=${output_dir}/sweeps/${now:%Y-%m-%d_%H-%M-%S}-" + str(os.getpid()))
    optuna = any(word.startswith("hydra/sweeper=optuna") for word in argv)
    if optuna and not any("max_failure_rate" in word for word in argv):
        more.append("hydra.sweeper.max_failure_rate=0.99")
    return [*argv, *more]
