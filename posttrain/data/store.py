"""Storing converted rows as a data set on disk, and reporting rows that do not fit.

Rows are checked and converted once, into a file of JSON lines, while the types of the columns are learnt; that file
becomes Arrow's. No more than a batch of rows is in memory.
"""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from posttrain.data.row import Row, RowError
from posttrain.errors import PosttrainError, first_line

if TYPE_CHECKING:
    from datasets import Dataset, Features

    from posttrain.data.skipped import Skipped

Stored: TypeAlias = "tuple[Dataset, Skipped | None]"
# Columns that must hold either text or conversations in all rows; a mix would be trained on wrongly.
SAME_TYPE_COLUMNS = ("prompt", "completion", "chosen", "rejected", "messages", "text")
SCALAR_TYPES = {type(None): "null", bool: "bool", int: "int", float: "float", str: "text"}
ITEM_TYPES = {str: "texts", dict: "objects", float: "numbers"}

_files = itertools.count()
# Folders for the files instead of the process's own; the last one is used.
folders: list[str] = []
Convert = Callable[[dict[str, Any]], dict[str, Any]]


def store(
    source: Iterable[Row],
    convert: Convert,
    key: str,
    skip: bool = False,
    check: Callable[[dict[str, Any]], None] | None = None,
) -> Stored:
    """The rows of `source`, converted, in a temporary file; and the rows that were skipped, `None` without any.

    `convert` raises `RowError`, and so does `check`, which gets each converted row. Raises `PosttrainError` with the
    first rows that do not fit, unless `skip`, and where no row is left. `key` begins a message, as in
    `data.path=rows.jsonl`.
    """
    kinds, path, count = ColumnTypes(), temporary_file("rows.jsonl"), 0
    skipped: Skipped | None = None
    try:
        with path.open("w", encoding="ascii") as file:
            for place, row in source:
                try:
                    if isinstance(row, RowError):
                        raise row
                    made = convert(row)
                    kinds.check(made)
                    if check is not None:
                        check(made)
                except RowError as row_error:
                    from posttrain.data.skipped import Skipped

                    skipped = skipped or Skipped(temporary_file("skipped.jsonl"))
                    skipped.add(place, row_error, row, keep=skip)
                    continue
                kinds.add(made)
                file.write(json.dumps(made, default=str) + "\n")
                count += 1
        if skipped and not (skip and count):
            raise PosttrainError(skipped.report(key))
        if not count:
            raise PosttrainError(f"{key}: no rows")
        with path.open(encoding="ascii") as file:
            return _write(map(json.loads, file), kinds, key), skipped
    except OSError as error:
        raise PosttrainError(f"{key}: the rows cannot be kept: {error}") from error
    finally:
        path.unlink(missing_ok=True)


def _write(rows: Iterable[dict[str, Any]], kinds: ColumnTypes, key: str) -> Dataset:
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    path, features = temporary_file("rows.arrow"), kinds.features()
    # Arrow refuses integers that no float equals.
    makers: dict[str, Callable[[Any], Any]]
    makers = {"json": functools.partial(json.dumps, ensure_ascii=False), "float": float}
    made = {name: makers[kind] for name, kind in kinds.found.items() if kind in makers}
    try:
        with ArrowWriter(path=str(path), features=features, writer_batch_size=1000) as writer:
            for row in rows:
                full = {name: row.get(name) for name in features}
                full |= {name: make(full[name]) for name, make in made.items() if full[name] is not None}
                writer.write(full)
            writer.finalize()
        return Dataset.from_file(str(path))
    except (ValueError, TypeError, OverflowError) as error:  # Arrow's errors are some of these
        raise PosttrainError(f"{key}: the rows cannot be kept: {first_line(error)}") from error


class ColumnTypes:
    """The type of each column, over all rows seen."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the types of a checked row."""
        self.found.update({n: _common_type(self.found.get(n, "null"), _value_type(value)) for n, value in row.items()})

    def check(self, row: Mapping[str, Any]) -> None:
        """Raise `RowError` where text and conversations, or thumbs and numbers, would be mixed in a column."""
        for name in SAME_TYPE_COLUMNS:
            if name in row and {self.found.get(name), _value_type(row[name])} == {"text", "objects"}:
                raise RowError(name, "is of another kind than in the rows before: text and conversations do not mix")
        rating = {self.found.get("rating", "null"), _value_type(row.get("rating"))} - {"null"}
        if len(rating) > 1 and "bool" in rating:
            raise RowError("rating", "is of another kind than in the rows before: thumbs and numbers do not mix")

    def features(self) -> Features:
        from datasets import Features, Json, List, Value

        types = {
            "null": Value("string"),
            "bool": Value("bool"),
            "int": Value("int64"),
            "float": Value("float64"),
            "text": Value("string"),
            "empty": List(Value("string")),
            "texts": List(Value("string")),
            "numbers": List(Value("float64")),
            # Messages differ in their keys; a common struct would fill them up with None, which templates print.
            "objects": List(Json()),
            "json": Json(),
        }
        return Features({name: types[kind] for name, kind in self.found.items()})


def _value_type(value: Any) -> str:
    if not isinstance(value, list):
        return SCALAR_TYPES.get(type(value), "json")
    kinds = {ITEM_TYPES.get(type(item), "json") for item in value}
    return "json" if len(kinds) > 1 else next(iter(kinds), "empty")


def _common_type(one: str, other: str) -> str:
    if one == other or other == "null":
        return one
    if one == "null":
        return other
    if {one, other} == {"int", "float"}:
        return "float"
    if "empty" in (one, other) and {one, other} <= {"empty", "texts", "numbers", "objects"}:
        return one if other == "empty" else other
    return "json"


def temporary_file(name: str) -> Path:
    """A new file in this process's own folder, which is removed when it ends."""
    return Path(folders[-1] if folders else _folder().name) / f"{next(_files)}-{name}"


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="posttrain-data-")
