"""The cache of embedded models and data: each folder is built once, and is complete or absent.

A folder is built next to its final place and moved there when it is whole, under a lock. Two processes build it once,
and a killed process leaves nothing that is taken for whole.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from posttrain.errors import PosttrainError


def cache_dir() -> Path:
    """`$POSTTRAIN_CACHE`, else `$XDG_CACHE_HOME/posttrain`, else `~/.cache/posttrain`. Not created here."""
    if own := os.environ.get("POSTTRAIN_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "posttrain"


def cached(name: str, build: Callable[[Path], object]) -> Path:
    """The folder `name` in the cache; where it is missing, `build` fills an empty folder that then becomes it.

    The name carries a version: a changed `build` needs a new name. Raises `PosttrainError` where the cache cannot be
    written; whatever `build` raises passes through, and nothing of its work stays.
    """
    from filelock import FileLock

    final = cache_dir() / name
    if final.is_dir():
        return final
    partial = final.with_name(f".{name}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.with_name(f".{name}.lock")):
            if final.is_dir():  # another process built it while this one waited
                return final
            shutil.rmtree(partial, ignore_errors=True)  # left by a killed process: we hold the lock, so it is nobody's
            partial.mkdir()
            try:
                build(partial)
                os.replace(partial, final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if error.errno is None:  # not the file system's: libraries raise OSError for much else
            raise
        raise PosttrainError(
            f"cannot write the cache {final.parent}: {error.strerror}. Set POSTTRAIN_CACHE to a folder with free space."
        ) from error
    return final
