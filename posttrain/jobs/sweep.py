"""Sweeps by Hydra multirun: a record of every job, and at the end the failed ones by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from posttrain.config.parse import origin, parse
from posttrain.config.schema import Origin
from posttrain.runs.directory import RunDirectory

# Where this process's sweep keeps its record; `None` outside a sweep.
current: Path | None = None


class Record(Callback):
    """Writes `jobs.jsonl` in the sweep's folder, a line per job, from whichever process ran it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global current
        current = Path(config.hydra.sweep.dir).absolute()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        job = origin(config.hydra)
        if job.sweep_dir is None:
            return
        failed = job_return.status is JobStatus.FAILED
        row = {
            "command": job.command,
            "status": "failed" if failed else "finished",
            "objective": None if failed else job_return.return_value,
            "error": f"{job_return._return_value}".splitlines()[0] if failed else None,
            "run": None if failed else _directory(job_return.cfg, job),
        }
        job.sweep_dir.mkdir(parents=True, exist_ok=True)
        with (job.sweep_dir / "jobs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _directory(cfg: Any, job: Origin) -> str:
    """Where the job's run is: a sweep's folder holds no runs, only this record."""
    return str(RunDirectory.of(parse(cfg), job).path)


def report() -> None:
    """Name the failed jobs of the sweep that has just ended, each with the command that repeats it alone."""
    if current is None or not (current / "jobs.jsonl").is_file():
        return
    rows = [json.loads(line) for line in (current / "jobs.jsonl").read_text(encoding="utf-8").splitlines()]
    failed = [row for row in rows if row["status"] == "failed"]
    print(f"sweep    {len(rows) - len(failed)} of {len(rows)} jobs finished: {current}", file=sys.stderr)
    for row in failed:
        print(f"failed   {row['command']}\n         {row['error']}", file=sys.stderr)
