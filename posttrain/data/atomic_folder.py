"""Folders that are complete or absent.

A folder is filled next to its final place and moved there when it is whole. A killed process leaves nothing that is
taken for whole.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder next to `folder`; it becomes `folder` if the block succeeds, and is deleted otherwise.

    Needs `folder_lock(folder)`: a temporary folder that is already there is then the rest of a killed process.
    """
    folder = folder.resolve()  # where a link leads
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
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f".{folder.name}.lock"))
