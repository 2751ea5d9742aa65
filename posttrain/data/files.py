"""The files that a data path names, and their rows, each with its place."""

import functools
import glob
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from posttrain.config.data_override import BUILT_IN
from posttrain.data import json_rows
from posttrain.data.row import Place, Row
from posttrain.errors import PosttrainError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def kind(path: Path) -> str | None:
    """The suffix that says how to read `path`, without that of its compression; `None` for any other file."""
    name = path.with_suffix("") if path.suffix in COMPRESSED else path
    return name.suffix if name.suffix in SUFFIXES else None


def built_in(path: Any) -> bool:
    return isinstance(path, str) and path.startswith(BUILT_IN)


def looks_local(path: str) -> bool:
    # A hub id without an owner has no dot; a file's name has.
    a_file = kind(Path(path)) is not None or ("/" not in path and Path(path).suffix != "")
    return path.startswith((".", "/", "~")) or a_file or glob.has_magic(path)


def resolve(path: str | list[str]) -> list[Path]:
    """The files that `path` names: one file, a list, or a pattern (sorted by name); empty for anything else."""
    if not isinstance(path, str):
        return [file for one in path for file in resolve(one)]
    local = Path(os.path.expanduser(path))
    if local.is_file():
        return [local]
    if local.exists() or not glob.has_magic(path):
        return []
    return [file for name in sorted(glob.glob(str(local), recursive=True)) if (file := Path(name)).is_file()]


def check(path: Any) -> str | None:
    """What is wrong with a data path that names files, before any of them is opened."""
    if isinstance(path, list):
        if not path:
            return "an empty list; name at least one file"
        wrong = next((f"{one}: {wrong}" for one in path if (wrong := _check_one(one, listed=True))), None)
    else:
        wrong = _check_one(path, listed=False)
    if wrong is None and len({kind(file) == ".parquet" for file in resolve(path)}) > 1:
        return "Parquet and other files together; name them as parts of data.mix"
    return wrong


def _check_one(path: Any, listed: bool) -> str | None:
    if not isinstance(path, str):
        return "expected a path: a file, a folder or an id of the hub"
    if built_in(path) and not listed:
        return None
    try:
        files = resolve(path)
        exists = bool(files) or Path(os.path.expanduser(path)).exists()
    except (OSError, ValueError) as error:
        return str(error)
    if not exists and looks_local(path):
        from posttrain.config.suggestions import near_path

        return "no file matches" if glob.has_magic(path) else f"no such file or folder{near_path(path)}"
    if odd := [name for name in (path, *map(str, files)) if re.search("[\ud800-\udfff]", name)]:
        return f"the name {odd[-1]!a} is not UTF-8; rename it"
    if listed and not files:
        return "expected a file; a list names files (other sources: data.mix)"
    for file in files:
        if (suffix := kind(file)) is None:
            where = "" if len(files) == 1 else f"{file}: "
            return f"{where}expected a .jsonl, .json, .csv or .parquet file (text also as {', '.join(COMPRESSED)})"
        if suffix == ".parquet" and file.suffix in COMPRESSED:
            return f"{file}: Parquet is compressed inside; unpack it"
    return None


def rows(file: Path, columns: dict[str, str]) -> Iterator[Row]:
    """The rows of a text file; a row that cannot be read is a `RowError`. `columns` maps our names to theirs.

    Raises `PosttrainError` where the rest of the file cannot be read either.
    """
    opened: Callable[[], AbstractContextManager[IO[bytes]]] = lambda: file.open("rb")  # noqa: E731
    try:
        with opened() as stream:
            plain = file.suffix in (".jsonl", ".json") and re.match(rb"[{\[][^\0]", stream.read(2))
        if not plain:
            from posttrain.data import file_contents

            file_contents.check(file, kind(file))
            opened = functools.partial(file_contents.opened, file)
        if kind(file) == ".csv":
            from posttrain.data import csv_rows

            found = csv_rows.read(file, opened, columns)
        else:
            found = json_rows.read(file, opened)
        for line, row in found:
            yield Place(str(file), "line", line), row
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise PosttrainError(f"{file}: cannot be read: {error}") from error
