"""The run directory: where a run lives, whose it is, and what makes it complete.

    config.yaml     the composed config          metrics.jsonl   every logged point
    run.json        what it is, from what        checkpoints/    Transformers checkpoints
    samples.jsonl   probe completions            model/          adapter or weights, tokenizer, model card
    skipped.jsonl   rows left out, with reasons
    prompts.jsonl   held-out prompts             export/, merged/  what posttrain.export made of it
    graders/        copies of the rewards'       base/  merged, for runs that put a new adapter on top

A run of job=sample has completions.jsonl, rewards.jsonl (its progress) and data/ instead, one of job=evaluate
scores.jsonl, one of job=doctor doctor.json, doctor.html and doubtful.jsonl. An evaluation of a reward model leaves
calibration.json, in itself and beside the model.

Its name is the run's name and a digest of everything that decides the result (`posttrain.identity`), so the same
command finds its own unfinished work, and other settings cannot overwrite it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from posttrain.config.schema import Origin, Run
from posttrain.errors import PosttrainError
from posttrain.runs.identity import digest, files_digest


class RunDirectory:
    """Paths and state of one run; `claim` before writing."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.data = path / "data"
        self.scores = path / "scores.jsonl"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.prompts = path / "prompts.jsonl"
        self.graders = path / "graders"
        self.skipped = path / "skipped.jsonl"
        self.curves = path / "curves.png"
        self._lock = FileLock(path / ".lock")

    @classmethod
    def of(cls, run: Run, origin: Origin) -> RunDirectory:
        job = f"-{run.job}" if run.job in ("sample", "evaluate", "doctor") else ""
        name = run.name or (origin.recipe or run.trainer.kind or run.job) + job
        return cls((Path(run.output_dir) / f"{name}-{digest(run)}").absolute())

    @property
    def name(self) -> str:
        return self.path.name

    def claim(self) -> None:
        """Make the directory this process's own; raises `PosttrainError` while another process has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            # The lock is the kernel's: it is released when the process dies, however it dies.
            # For a moment it may be held by a process that only asks whether it is held.
            self._lock.acquire(timeout=0.2, poll_interval=0.02)
        except Timeout:
            raise PosttrainError(
                f"{self.path}: another process is running this very run; wait for it, or set name=OTHER"
            ) from None

    def release(self) -> None:
        self._lock.release()

    def busy(self) -> bool:
        """Whether another process has the directory now."""
        if not self.path.is_dir():
            return False
        if _taken(self._lock, 0):
            self._lock.release()
            return False
        return True

    @contextmanager
    def turn(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Wait until no other process has the directory, and keep others that wait here waiting meanwhile.

        `waiting` is called while it lasts, some times a second. A second lock, because the run's own process, which
        is started here, takes the first.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        queue = FileLock(self.path / ".turn")
        while not _taken(queue, 0.2):
            waiting()
        try:
            while self.busy():
                waiting()
                time.sleep(0.2)
            yield
        finally:
            queue.release()

    def record(self) -> dict[str, Any] | None:
        """`run.json`, or `None` before the first `write`."""
        path = self.path / "run.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write(self, record: dict[str, Any]) -> None:
        write_json(self.path / "run.json", record)

    def write_config(self, run: Run) -> None:
        """The composed config, and a copy of each grader it names."""
        write_atomic(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(asdict(run))))
        for path, entries in (("reward", run.reward), ("probe.rewards", run.probe.rewards)):
            for name, entry in entries.items():
                if entry.grader:
                    self.graders.mkdir(exist_ok=True)
                    text = Path(os.path.expanduser(entry.grader)).read_text(encoding="utf-8")
                    write_atomic(self.graders / f"{path}.{name}.json", text)

    def write_prompts(self, rows: list[dict[str, Any]]) -> None:
        """Keep held-out prompts, to compare models on later."""
        if rows:
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            write_atomic(self.prompts, "".join(f"{line}\n" for line in lines))

    def write_skipped(self, files: list[Path]) -> None:
        """Keep the rows that `data.on_error=skip` left out, from `files`: file, line, field, reason and the row."""
        if files:
            half = self.skipped.with_name("skipped.jsonl.incomplete")
            with half.open("wb") as whole:
                for file in files:
                    with file.open("rb") as part:
                        shutil.copyfileobj(part, whole)
            os.replace(half, self.skipped)

    def finished(self) -> bool:
        record = self.record()
        return record is not None and record["status"] == "finished"

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint."""
        found = [(int(p.name.split("-")[1]), p) for p in self.checkpoints.glob("checkpoint-*") if _whole(p)]
        return max(found)[1] if found else None

    def remove_incomplete(self) -> None:
        """Remove checkpoints that a killed process left half-written; only for who has claimed the directory."""
        for path in self.checkpoints.glob("checkpoint-*"):
            if not _whole(path):
                shutil.rmtree(path)

    def truncate_metrics(self, step: int) -> None:
        """Drop points after `step`: a continued run logs them again."""
        for path in (self.metrics, self.samples):
            if path.is_file():
                rows = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
                write_atomic(path, "".join(f"{row}\n" for row in rows))

    def made(self) -> str:
        """A digest of weights and sampled data: what a child's `run.json` knows this run by."""
        return files_digest([*self.model.glob("*.safetensors"), *self.data.glob("*.parquet")])

    def put_model(self, half: Path) -> None:
        """Put a folder that is written to the end in place as `model/`."""
        shutil.rmtree(self.model, ignore_errors=True)
        os.replace(half, self.model)

    def put_data(self, half: Path) -> None:
        """The same for `data/`."""
        shutil.rmtree(self.data, ignore_errors=True)
        os.replace(half, self.data)


def model_folder(path: str) -> str:
    """`path`, or the `model/` folder inside it when it is a run directory; raises for an unfinished run."""
    folder = Path(os.path.expanduser(path))
    if not (folder / "run.json").is_file():
        return path
    run = RunDirectory(folder)
    if (job := (run.record() or {}).get("job", "train")) in ("sample", "evaluate", "doctor"):
        raise PosttrainError(f"{path}: a run of job={job} has no model")
    if not run.finished():
        raise PosttrainError(f"{path}: this run is not finished; continue it with the command in its run.json")
    return str(folder / "model")


def _taken(lock: FileLock, seconds: float) -> bool:
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    return True


def _whole(checkpoint: Path) -> bool:
    # Transformers writes trainer_state.json last, after weights, optimizer and random state.
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return True


def _step(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return 1 << 62  # a line cut short by a full disk or a kill


@contextmanager
def placed(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` to fill; it becomes `folder` when the block ends well, and else nothing stays.

    Only under `lock(folder)`: what lies at the side is then a killed process's.
    """
    half = folder.with_name(f".{folder.name}.incomplete")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    try:
        yield half
        os.replace(half, folder)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def lock(folder: Path) -> FileLock:
    """The lock for making `folder`; a second process waits."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that a reader, or a crash, sees the old file or the new one, never a part."""
    half = path.with_name(path.name + ".incomplete")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)


def write_json(path: Path, record: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(record, indent=2, default=str) + "\n")
