"""Rows of CSV, read strictly, and the types of their columns."""

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from posttrain.data.json_rows import Found
from posttrain.data.row import RowError
from posttrain.errors import PosttrainError

# Columns that are learnt from; they are text even where every value looks like a number.
TEXT = (
    *("text", "prompt", "completion", "chosen", "rejected", "instruction", "input", "output", "response", "system"),
    *("question", "query", "rejected_response"),
)


def read(file: Path, opened: Callable[[], AbstractContextManager[IO[bytes]]], columns: dict[str, str]) -> Found:
    """Rows with the header's names; a column holds numbers or booleans if all of its values are such.

    `columns` maps our names to theirs. Raises `PosttrainError` where the rest of the file cannot be read either.
    """
    csv.field_size_limit(1 << 30)
    kinds: dict[str, set[str]] = {}
    for _, row in _records(file, opened):
        for name, value in row.items() if isinstance(row, dict) else ():
            kinds.setdefault(name, set()).add(_cell_type(value))
    plain = {columns.get(name, name) for name in TEXT}
    makers = {name: _cell_converter({"text"} if name in plain else found) for name, found in kinds.items()}
    for number, row in _records(file, opened):
        yield number, {n: makers[n](value) for n, value in row.items()} if isinstance(row, dict) else row


def _records(file: Path, opened: Callable[[], AbstractContextManager[IO[bytes]]]) -> Iterator[tuple[int, Any]]:
    with opened() as stream:
        # Bytes that are not UTF-8 become surrogates, so that only their row is lost.
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        yield from _fields(lines, file)


def _fields(lines: IO[str], file: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.reader(lines, strict=True)
    header: list[str] = []
    while True:
        begin = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise PosttrainError(
                    f"{file}, line {begin}: a quote is not closed, so the rows after it cannot be separated"
                ) from None
            yield begin, RowError("", f"is not CSV: {error}")
            continue
        if not header:
            header = fields
            if any("\udc80" <= char <= "\udcff" or char == "\0" for field in header for char in field):
                raise PosttrainError(f"{file}: the header is not UTF-8; save the file as UTF-8")
            if len(set(header)) < len(header) or not all(header):
                names, index = ", ".join(header), "" if all(header[:1]) else " (pandas: to_csv(index=False))"
                raise PosttrainError(f"{file}: the header must name each column once, and has {names!r:.200}{index}")
            if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
                raise PosttrainError(f"{file}: columns are separated by commas; the header is {header[0]!r:.200}")
        elif not fields:
            continue
        elif len(fields) != len(header):
            yield (
                begin,
                RowError("", f"has {len(fields)} fields, the header {len(header)}; quote commas and newlines"),
            )
        elif any("\udc80" <= char <= "\udcff" for field in fields for char in field):
            yield begin, RowError("", "is not UTF-8; save the file as UTF-8")
        else:
            yield begin, dict(zip(header, fields, strict=True))


def _cell_type(value: str) -> str:
    if value.lower() in ("", "true", "false"):
        return "bool" if value else "empty"
    try:
        # "007" is a name, not a number.
        return "int" if str(int(value)) == value and len(value) < 19 else "text"
    except ValueError:
        pass
    try:
        return "float" if abs(float(value)) < float("inf") and "_" not in value else "text"
    except ValueError:
        return "text"


def _cell_converter(kinds: set[str]) -> Any:
    kinds = kinds - {"empty"}
    if kinds == {"bool"}:
        return lambda value: value.lower() == "true" if value else None
    if kinds == {"int"}:
        return lambda value: int(value) if value else None
    if kinds and kinds <= {"int", "float"}:
        return lambda value: float(value) if value else None
    return lambda value: value or None
