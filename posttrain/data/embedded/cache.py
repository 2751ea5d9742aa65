"""The cache of embedded models and data: each folder is built once, and is complete or absent."""

import os
from collections.abc import Callable
from pathlib import Path

from posttrain.errors import PosttrainError


def cache_dir() -> Path:
    """`$POSTTRAIN_CACHE`, else `$XDG_CACHE_HOME/posttrain`, else `~/.cache/posttrain`. Not created here."""
    if own := os.environ.get("POSTTRAIN_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "posttrain"


def cached(name: str, build: Callable[[Path], object]) -> Path:
    """The folder `name` in the cache; if it is missing, `build` fills an empty folder, which is then moved there.

    The name carries a version: a changed `build` needs a new name. Raises `PosttrainError` where the cache cannot be
    written; whatever `build` raises passes through, and nothing of its work stays.
    """
    final = cache_dir() / name
    if final.is_dir():
        return final
    from posttrain.data.atomic_folder import atomic_folder, folder_lock

    try:
        with folder_lock(final):
            if not final.is_dir():  # another process may have built it while this one waited
                with atomic_folder(final) as partial:
                    build(partial)
    except OSError as error:
        if error.errno is None:  # not the file system's: libraries raise OSError for much else
            raise
        raise PosttrainError(
            f"cannot write the cache {final.parent}: {error.strerror}. Set POSTTRAIN_CACHE to a folder with free space."
        ) from error
    return final
