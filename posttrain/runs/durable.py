"""Files and folders that a crash leaves whole: as they were, or as they were to become."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that a reader, or a crash, sees the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".incomplete")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_json(path: Path, record: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(record, indent=2, default=str) + "\n")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """An empty folder next to `folder` to fill; it becomes `folder` when the block ends well, and else nothing stays.

    Only under `folder_lock(folder)`: what lies at the side is then a killed process's.
    """
    temporary = folder.with_name(f".{folder.name}.incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def folder_lock(folder: Path) -> FileLock:
    """The lock for making `folder`; a second process waits."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def sync(folder: Path) -> None:
    """Bring every file in a folder to the disk."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for inside in {folder, *(path.parent for path in files)}:
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
