"""The points of a run in W&B's local files, and those of `metrics.jsonl` that are missing there.

W&B's service writes its files in blocks. When the process is killed, W&B loses the unwritten points; they are sent
again when the run resumes. The format is LevelDB's log (a header of 7 bytes, then records in blocks of 32 KiB) around
W&B's protocol buffers.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
WHOLE, LAST = 1, 4
STEP = "train/global_step"
# Metrics that Transformers' callback writes to W&B's summary only.
SUMMARY = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")


def records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file as protocol buffers, up to the first truncated one."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    new: Any = vars(wandb_internal_pb2)["Record"]
    for data in _log_records(file):
        record = new()
        try:
            record.ParseFromString(data)
        except DecodeError:
            return
        yield record


def _log_records(file: Path) -> Iterator[bytes]:
    data, position, parts = file.read_bytes(), HEADER, b""
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        if not kind or position + HEADER + length > len(data):
            return
        parts += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (WHOLE, LAST):
            yield parts
            parts = b""


def history(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The points of a run in W&B's files, of all processes that have worked on it."""
    for file in sorted((run_dir / "wandb").glob("*run-*/*.wandb")):
        for record in records(file):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def missing(run_dir: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, with W&B's names, that are in none of W&B's files."""
    known: dict[int, set[str]] = {}
    for point in history(run_dir):
        if STEP in point:
            known.setdefault(int(point[STEP]), set()).update(point)
    found = []
    for row in rows:
        if "alarm" in row:
            continue
        step = int(row["step"])
        named = {_name(key): value for key, value in row.items() if key != "step" and key not in SUMMARY}
        if named and not named.keys() <= known.get(step, set()):
            found.append({**named, STEP: step})
    return found


def _name(metric: str) -> str:
    """A trainer's metric as Transformers' callback names it; metrics of the probe keep their names."""
    if metric.startswith(("probe/", "shift/")):
        return metric
    return "eval/" + metric.removeprefix("eval_") if metric.startswith("eval_") else "train/" + metric
