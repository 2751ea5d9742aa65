"""Checkpoints on disk: `seal` lists the files of a finished one, with sizes and checksums, in `files.json`.

`posttrain.runs.damage` compares a checkpoint with that list.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MANIFEST = "files.json"
# What the trainer itself must remember to resume exactly (posttrain.training.resume); one file per process.
PROGRESS = "progress.json"
# Bytes from which on a file's checksum would cost more time than it is worth; its size is always checked.
CHECKED = 1 << 30


def step(folder: Path) -> int:
    """The optimizer step after which the checkpoint `checkpoint-N` was taken."""
    return int(folder.name.rpartition("-")[2])


def seal(folder: Path) -> None:
    """Bring every file of a finished checkpoint to the disk, then write down which files it has."""
    sync(folder)
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "crc32": crc32_of(path)} for path in _files(folder)
    }
    temporary = folder / f"{MANIFEST}.incomplete"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(files, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / MANIFEST)
    sync_folder(folder)
    sync_folder(folder.parent)


def progress(folder: Path) -> dict[str, Any]:
    """What the main process's trainer remembered when the checkpoint was taken; empty in those of earlier versions."""
    path = folder / PROGRESS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def sync(folder: Path) -> None:
    """Bring every file in a folder to the disk."""
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for inside in {folder, *(path.parent for path in _files(folder))}:
        sync_folder(inside)


def sync_folder(folder: Path) -> None:
    """Make names made in a folder as lasting as the files that they name."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems cannot; their files are synced all the same
        pass
    finally:
        os.close(handle)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(MANIFEST))


def crc32_of(path: Path) -> int | None:
    if path.stat().st_size > CHECKED:
        return None
    sum_so_far = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            sum_so_far = zlib.crc32(part, sum_so_far)
    return sum_so_far
