"""Digests of files and folders by their content."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

# Folders in a run directory that are no part of its result; creating them later does not change its digest.
NOT_CONTENT = ("checkpoints", "export", "merged", "base")
# Larger files, in bytes, count by size and modification time in a folder.
HASHED_WHOLE = 64 << 20


def file_stamp(file: Path) -> str:
    known = file.stat()
    return f"{file.name} {known.st_size} {known.st_mtime_ns}"


def content(path: Path) -> str | None:
    """A digest of a local file or folder (large files in it by size and modification time); `None` for other paths.

    A run's digest is `content` in its `run.json`, which depends on its result, not on its time.
    """
    whole = hashlib.sha256()
    if path.is_file():
        _hash_file(whole, path)
    elif path.is_dir():
        if made := _made_content(path):
            return made
        for inner in sorted(p for p in path.rglob("*") if p.is_file() and _counts(p.relative_to(path))):
            known = inner.stat()
            whole.update(f"{inner.relative_to(path)} {known.st_size}".encode())
            if known.st_size <= HASHED_WHOLE:
                _hash_file(whole, inner)
            else:  # reading many gigabytes of weights would take too long
                whole.update(f" {known.st_mtime_ns}".encode())
    else:
        return None
    return whole.hexdigest()


def _made_content(folder: Path) -> str | None:
    """The digest in the record of a finished run in `folder`."""
    record = folder / "run.json"
    with suppress(ValueError, AttributeError):  # whoever uses a run with a damaged record says so
        return json.loads(record.read_text(encoding="utf-8")).get("content") if record.is_file() else None
    return None


def files_digest(files: list[Path]) -> str:
    """A digest (16 hex digits) of the files' names and content, independent of their folder."""
    whole = hashlib.sha256()
    for file in sorted(files, key=lambda path: path.name):
        whole.update(file.name.encode())
        _hash_file(whole, file)
    return whole.hexdigest()[:16]


def _hash_file(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def _counts(inner: Path) -> bool:
    return inner.parts[0] not in NOT_CONTENT and not any(p.startswith((".", "checkpoint-")) for p in inner.parts)
