"""Cutting the records of a run back to the checkpoint that it resumes from."""

import json
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.runs import checkpoint as checkpoints
from posttrain.runs.durable import write_atomic


def rewind(records: tuple[Path, ...], checkpoint: Path | None) -> None:
    """Cut the JSON-lines files `records` back to `checkpoint`; a resumed run writes the later rows again."""
    lengths = _progress(checkpoint).get("records", {}) if checkpoint else {}
    step = checkpoints.step(checkpoint) if checkpoint else -1
    for path in records:
        if path.is_file() or lengths.get(path.name):
            write_atomic(path, _rows_until(path, step, lengths.get(path.name)))


def _rows_until(path: Path, step: int, length: int | None) -> str:
    """The first `length` bytes of a file, or its rows up to `step`; raises `PosttrainError` where a row is damaged.

    The last row may be cut short, by a full disk or a kill.
    """
    data = path.read_bytes() if path.is_file() else b""
    lines, kept = data[:length].splitlines(keepends=True), []
    if length is not None and len(data) < length:
        lines.append(b"")  # the file is shorter than at the checkpoint: rows were lost
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if row["step"] <= step:
                kept.append(line.decode("utf-8").rstrip("\n") + "\n")
        except (ValueError, TypeError, KeyError):
            if length is None and number == len(lines):
                continue
            raise PosttrainError(
                f"{path}:{number}: is damaged; restore the file, or remove {path.parent} and train again"
            ) from None
    return "".join(kept)


def _progress(folder: Path) -> dict[str, Any]:
    """The progress of the main process's trainer at the checkpoint; empty in checkpoints of earlier versions."""
    path = folder / checkpoints.PROGRESS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
