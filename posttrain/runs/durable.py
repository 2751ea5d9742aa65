"""Writing files so that a crash leaves either the old or the new content."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that a reader, or a crash, sees the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".incomplete")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            print(text, end="", file=file, flush=True)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, record: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(record, indent=2, default=str) + "\n")


def sync(folder: Path) -> None:
    """Flush every file in a folder to the disk (fsync)."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for inside in filter(Path.is_dir, (folder, *folder.rglob("*"))):
        sync_folder(inside)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that new files in it survive a crash."""
    handle = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # some network file systems cannot; their files are synced all the same
        os.fsync(handle)
    os.close(handle)
