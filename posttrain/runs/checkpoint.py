"""Checkpoints on disk: `seal` lists the files of a finished one, with sizes and checksums, in `files.json`.

`posttrain.runs.damage` compares a checkpoint with that list.
"""

import zlib
from pathlib import Path

from posttrain.runs import durable

MANIFEST = "files.json"
# State of the trainer that an exact resume needs (posttrain.training.resume); one file per process.
PROGRESS = "progress.json"
# The weights of a reference that moves with the policy.
REFERENCE = "reference.safetensors"
# Files from this size on, in bytes, get no checksum, which would take too long; their size is always checked.
CHECKED = 1 << 30


def step(folder: Path) -> int:
    """The optimizer step after which the checkpoint `checkpoint-N` was taken."""
    return int(folder.name.rpartition("-")[2])


def seal(folder: Path) -> None:
    """Flush every file of a finished checkpoint to the disk, then write the list of its files."""
    durable.sync(folder)
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(MANIFEST))
    sums = {str(path.relative_to(folder)): {"size": path.stat().st_size, "crc32": crc32_of(path)} for path in files}
    durable.write_json(folder / MANIFEST, sums)
    durable.sync_folder(folder.parent)


def progress_file(process: int) -> str:
    return PROGRESS if process == 0 else f"progress_{process}.json"


def crc32_of(path: Path) -> int | None:
    if path.stat().st_size > CHECKED:
        return None
    sum_so_far = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            sum_so_far = zlib.crc32(part, sum_so_far)
    return sum_so_far
