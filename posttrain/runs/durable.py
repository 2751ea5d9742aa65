"""Files that a crash leaves whole: as they were, or as they were to become."""

import json
import os
from pathlib import Path
from typing import Any


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
