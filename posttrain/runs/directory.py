"""The run directory: its files, its lock, and what makes a run complete.

    config.yaml     the composed config          metrics.jsonl   every logged point
    run.json        what it is, from what        checkpoints/    Transformers checkpoints
    samples.jsonl   probe completions            model/          adapter or weights, tokenizer, model card
    skipped.jsonl   rows left out, with reasons
    prompts.jsonl   held-out prompts             export/, merged/  what posttrain.export made of it
    graders/        copies of the rewards'       base/  merged, for runs that put a new adapter on top

A run of job=sample has completions.jsonl, rewards.jsonl (its progress) and data/ instead, one of job=evaluate
scores.jsonl, one of job=doctor doctor.json, doctor.html and doubtful.jsonl. An evaluation of a reward model leaves
calibration.json, in itself and next to the model.

Its name is the run's name and a digest of everything that decides the result (`posttrain.runs.identity`), so the same
command finds its own unfinished work, and other settings cannot overwrite it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from posttrain.config.schema import Origin, Run
from posttrain.errors import PosttrainError
from posttrain.runs import checkpoint as checkpoints
from posttrain.runs import durable
from posttrain.runs.content import files_digest
from posttrain.runs.durable import write_atomic, write_json
from posttrain.runs.identity import digest


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
        name = run.name or (origin.recipe or run.trainer.kind.rpartition(".")[2] or run.job) + job
        return cls((Path(run.output_dir) / f"{name}-{digest(run)}").absolute())

    @property
    def name(self) -> str:
        return self.path.name

    def claim(self) -> None:
        """Make the directory this process's own; raises `PosttrainError` while another process has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        # The kernel releases the lock whenever the process dies. For a moment, a process that only asks whether it is
        # held may hold it.
        if not try_lock(self._lock, 0.2):
            raise PosttrainError(
                f"{self.path}: another process is running this very run; wait for it, or set name=OTHER"
            )

    def release(self) -> None:
        self._lock.release()

    def claimed_elsewhere(self) -> bool:
        """Whether another process has the directory now."""
        if not self.path.is_dir():
            return False
        if try_lock(self._lock, 0):
            self._lock.release()
            return False
        return True

    @contextmanager
    def claim_for_work(self) -> Iterator[bool]:
        """Claim the directory for the block; yields whether the run is unfinished, since another process may end it.

        If the block ends without success, `run.json` gets the status `interrupted` (by a signal) or `failed`.
        """
        self.claim()
        try:
            yield not self.finished()
        except BaseException as error:
            record = self.record()
            if record is not None and record["status"] == "running":
                signal = isinstance(error, (SystemExit, KeyboardInterrupt))
                why = {} if signal else {"error": (str(error).splitlines() or [type(error).__name__])[0]}
                with suppress(OSError):  # on a full disk the old record stays
                    self.write({**record, "status": "interrupted" if signal else "failed", **why})
            raise
        finally:
            self.release()

    def record(self) -> dict[str, Any] | None:
        """`run.json`, or `None` before the first `write`; raises `PosttrainError` where it is damaged."""
        path = self.path / "run.json"
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            record = error
        if not isinstance(record, dict) or "status" not in record:
            why = record if isinstance(record, ValueError) else "it lacks what posttrain writes"
            raise PosttrainError(
                f"{path}: is damaged ({why}); restore it, or remove it: the run's command then writes it again and "
                "resumes from the last checkpoint"
            )
        return record

    def write(self, record: dict[str, Any]) -> None:
        write_json(self.path / "run.json", record)

    def write_config(self, run: Run) -> None:
        """The composed config, and a copy of each grader it names."""
        write_atomic(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(asdict(run))))
        for path, entries in run.rewards.items():
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
            temporary = self.skipped.with_name("skipped.jsonl.incomplete")
            with temporary.open("wb") as whole:
                for file in files:
                    with file.open("rb") as part:
                        shutil.copyfileobj(part, whole)
            os.replace(temporary, self.skipped)

    def finished(self) -> bool:
        record = self.record()
        return record is not None and record["status"] == "finished"

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint."""
        if not (found := self._checkpoints()):
            return None
        from posttrain.runs.damage import damage

        return next((path for path in found if damage(path) is None), None)

    def remove_damaged_checkpoints(self) -> list[str]:
        """Remove damaged checkpoints and return why; only after `claim`."""
        if not (found := self._checkpoints()):
            return []
        from posttrain.runs.damage import remove_damaged

        return remove_damaged(found)

    def _checkpoints(self) -> list[Path]:
        """The newest first."""
        found = [p for p in self.checkpoints.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
        return sorted(found, key=checkpoints.step, reverse=True)

    def rewind(self, checkpoint: Path | None) -> None:
        """Cut the records back to `checkpoint`; a resumed run writes the later rows again."""
        if checkpoint or self.metrics.is_file() or self.samples.is_file():
            from posttrain.runs.rewind import rewind

            rewind((self.metrics, self.samples), checkpoint)

    def content_digest(self) -> str:
        """A digest of weights and sampled data, by which the `run.json` of a child identifies this run."""
        return files_digest([*self.model.glob("*.safetensors"), *self.data.glob("*.parquet")])

    def put(self, temporary: Path, folder: Path) -> None:
        """Move a complete folder to its final place, `model` or `data`."""
        durable.sync(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)


def try_lock(lock: FileLock, seconds: float) -> bool:
    """Acquire `lock` within so many seconds; whether that succeeded."""
    try:
        lock.acquire(timeout=seconds, poll_interval=0.02)
    except Timeout:
        return False
    return True
