"""The files that a data path names, and their rows, each with the place where it stands."""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import importlib.util
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from posttrain import extras
from posttrain.errors import PosttrainError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# Data that is no file: what comes with the package, and tasks that are drawn.
BUILT_IN = ("embedded:", "reasoning_gym:")
# Columns that are text in a CSV file even where every value looks like a number.
TEXT = ("text", "prompt", "completion", "chosen", "rejected", "instruction", "input", "output", "response")


class RowError(Exception):
    """What is wrong with one row: the field (empty for the whole row) and the reason."""

    def __init__(self, field: str, reason: str):
        super().__init__(reason)
        self.field, self.reason = field, reason


class Place(NamedTuple):
    """Where a row stands: `unit` is line (a text file) or row (Parquet, the hub); both count from 1."""

    file: str
    unit: str
    number: int


Row = tuple[Place, "dict[str, Any] | RowError"]


def kind(path: Path) -> str | None:
    """The suffix that says how to read `path`, without that of its compression; `None` for any other file."""
    name = path.with_suffix("") if path.suffix in COMPRESSED else path
    return name.suffix if name.suffix in SUFFIXES else None


def built_in(path: Any) -> bool:
    return isinstance(path, str) and path.startswith(BUILT_IN)


def looks_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or kind(Path(path)) is not None or glob.has_magic(path)


def resolve(path: str | list[str]) -> list[Path]:
    """The files that `path` names: itself, those of a list or a pattern (in order of name); none for anything else."""
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
        return "expected a path"
    if built_in(path) and not listed:
        return None
    try:
        files = resolve(path)
        exists = bool(files) or Path(os.path.expanduser(path)).exists()
    except (OSError, ValueError) as error:
        return str(error)
    if not exists and looks_local(path):
        return "no file matches" if glob.has_magic(path) else "no such file or folder"
    if listed and not files:
        return "expected a file; a list names files (other sources: data.mix)"
    for file in files:
        if (suffix := kind(file)) is None:
            where = "" if len(files) == 1 else f"{file}: "
            return f"{where}expected a .jsonl, .json, .csv or .parquet file (text also as {', '.join(COMPRESSED)})"
        if suffix == ".parquet" and file.suffix in COMPRESSED:
            return f"{file}: Parquet is compressed inside; unpack it"
        if file.suffix == ".zst" and importlib.util.find_spec("zstandard") is None:
            return f"{file}: needs the library zstandard: {extras.install_command('zstd')}"
    return None


def rows(file: Path, columns: dict[str, str]) -> Iterator[Row]:
    """The rows of a text file; what cannot be read is a `RowError` in its place. `columns` maps our names to theirs.

    Raises `PosttrainError` where the rest of the file cannot be read either.
    """
    try:
        check_content(file)
        for line, row in (_csv if kind(file) == ".csv" else _json)(file, columns):
            yield Place(str(file), "line", line), row
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise PosttrainError(f"{file}: cannot be read: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith("zstandard"):
            raise PosttrainError(f"{file}: cannot be read: {error}") from error
        raise


@contextmanager
def _open(file: Path) -> Iterator[IO[bytes]]:
    if file.suffix == ".zst":
        import zstandard

        with (
            file.open("rb") as packed,
            zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as z,
        ):
            yield io.BufferedReader(z)
        return
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(file.suffix, open)
    with opener(file, "rb") as stream:
        yield stream


Found = Iterator[tuple[int, "dict[str, Any] | RowError"]]


def _objects(stream: Any) -> Found:
    for number, raw in enumerate(stream, 1):
        if raw.strip():
            try:
                yield number, _object(_text(raw).rstrip())
            except RowError as row_error:
                yield number, row_error


# A file that is one object, whose only value are the rows: {"data": [{...}, ...]}.
_WRAPPER = re.compile(rb'\s*\{\s*"(data|rows|examples|instances|train)"\s*:\s*\[\s*\{')
_ARRAY = re.compile(rb"\s*\[\s*[\{\]]")


def _json(file: Path, columns: dict[str, str]) -> Found:
    """An array of objects, alone or as the value of an object; any other file holds one object per line.

    Raises `PosttrainError` where the array itself is broken: where its next row begins is unknown then.
    """
    with _open(file) as stream:
        start = stream.read(1 << 16).removeprefix(b"\xef\xbb\xbf")
        wrapped = _WRAPPER.match(start)
        lines = not (wrapped or _ARRAY.match(start))
    if lines:
        with _open(file) as stream:
            yield from _objects(stream)
        return
    with _open(file) as stream:
        try:
            text = _text(stream.read())
        except RowError as row_error:
            raise PosttrainError(f"{file}: {row_error.reason}") from None
    position = text.index("[") + 1
    line, seen = text.count("\n", 0, position) + 1, position

    def broken(reason: str, at: int) -> PosttrainError:
        return PosttrainError(f"{file}, line {line + text.count(chr(10), seen, at)}: is not JSON: {reason}")

    position = _skip_space(text, position)
    while position < len(text) and text[position] != "]":
        line, seen = line + text.count("\n", seen, position), position
        try:
            value, position = _value(text, position)
        except json.JSONDecodeError as error:
            raise broken(f"{_STARTS.sub('', error.msg)} at column {error.colno}", error.pos) from None
        if isinstance(value, RowError):
            yield line, value
        else:
            try:
                _check_characters(value, text[seen:position])
                yield line, _dict(value, text[seen:position])
            except RowError as row_error:
                yield line, row_error
        position = _skip_space(text, position)
        if position < len(text) and text[position] == ",":
            position = _skip_space(text, position + 1)
            if text[position : position + 1] in ("]", ","):
                raise broken("a comma with no row after it", position)
        elif position < len(text) and text[position] != "]":
            raise broken("expected a comma between rows", position)
    if position >= len(text):
        raise broken("the array does not end; the file is cut short", position)
    rest = text[position + 1 :].strip()
    if wrapped:
        rest = rest.removeprefix("}").strip() if rest.startswith("}") else rest or "no }"
    if rest:
        raise broken(f"more after the array: {rest!r:.40}", position)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _value(text: str, position: int) -> tuple[Any, int]:
    """The value at `position` and its end; a `RowError` where it is JSON that could not be kept."""
    try:
        return DECODER.raw_decode(text, position)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
        try:
            end = json.JSONDecoder().raw_decode(text, position)[1]
        except RecursionError:
            raise json.JSONDecodeError("nested too deeply", text[: position + 80], position) from None
        return RowError("", reason), end


# How files of other kinds begin.
_MAGIC = {
    b"PAR1": "a Parquet file; call it .parquet",
    b"\x1f\x8b": "compressed by gzip; add .gz to its name",
    b"BZh": "compressed by bzip2; add .bz2 to its name",
    b"\xfd7zXZ": "compressed by xz; add .xz to its name",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; add .zst to its name",
    b"PK\x03\x04": "a zip or Excel file; unpack it, or save it as CSV",
    b"ARROW1": "an Arrow file; save it as Parquet",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
}


def check_content(file: Path) -> None:
    """Raise `PosttrainError` for a file that is not what the ending of its name says."""
    named = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ", ".zst": b"\x28\xb5\x2f\xfd"}
    with file.open("rb") as stream:
        start = stream.read(64)
    if kind(file) == ".parquet":
        if start and not start.startswith(b"PAR1"):
            raise PosttrainError(f"{file}: cannot be read: it is not a Parquet file, whatever its name says")
        return
    if file.suffix not in named:
        for magic, what in _MAGIC.items():
            if start.startswith(magic):
                raise PosttrainError(f"{file}: cannot be read: it is {what}")
        if kind(file) == ".csv" and re.match(rb'(\xef\xbb\xbf)?\s*(\[\s*)?\{\s*"\w+"\s*:', start):
            raise PosttrainError(f"{file}: cannot be read: it is JSON; call it .jsonl or .json")


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError("", f"is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None


def _object(text: str) -> dict[str, Any]:
    return _dict(parse_json(text), text)


def parse_json(text: str) -> Any:
    """The JSON value that `text` is; raises `RowError` for anything else, and for what could not be kept."""
    value, end = _decode(text, len(text) - len(text.lstrip()))
    if rest := text[end:].strip():
        raise RowError("", f"is not JSON: more after the object at column {end + 1}: {rest!r:.40}")
    _check_characters(value, text)
    return value


def _dict(value: Any, text: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowError("", f"expected an object {{...}}, got {text.strip()!r:.60}")
    return value


def _check_characters(value: Any, text: str) -> None:
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise RowError("", "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character") from None
        except RecursionError:
            raise RowError("", "is nested too deeply") from None


def _decode(text: str, position: int) -> tuple[Any, int]:
    try:
        return DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        raise RowError("", f"is not JSON: {_STARTS.sub('', error.msg)} at column {error.colno}") from None
    except RecursionError:
        raise RowError("", "is nested too deeply") from None
    except ValueError as error:
        raise RowError("", str(error)) from None


# Some of the parser's messages end in `at`, which its own text goes on from.
_STARTS = re.compile(r"( starting)? at$")


def _integer(digits: str) -> int:
    if len(digits) > 19 or not -(1 << 63) <= int(digits) < 1 << 63:
        raise ValueError(f"holds the number {digits:.24}, which does not fit 64 bits; write it as text")
    return int(digits)


def _number(digits: str) -> float:
    if abs(value := float(digits)) == float("inf"):
        raise ValueError(f"holds the number {digits:.24}, which is too large; write it as text")
    return value


def _constant(name: str) -> None:
    raise ValueError(f"is not JSON: {name} is no number there; write null")


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has the key {twice!r:.40} twice")
    return made


DECODER = json.JSONDecoder(
    object_pairs_hook=_reject_duplicate_keys, parse_int=_integer, parse_float=_number, parse_constant=_constant
)


def _csv(file: Path, columns: dict[str, str]) -> Found:
    """Rows under the header's names; a column is of numbers or booleans where all of its values are."""
    csv.field_size_limit(1 << 30)
    kinds: dict[str, set[str]] = {}
    with _lines(file) as lines:
        for _, row in _records(lines, file):
            for name, value in row.items() if isinstance(row, dict) else ():
                kinds.setdefault(name, set()).add(_cell_type(value))
    plain = {columns.get(name, name) for name in TEXT}
    makers = {name: _cell_converter({"text"} if name in plain else found) for name, found in kinds.items()}
    with _lines(file) as lines:
        for number, row in _records(lines, file):
            yield number, {n: makers[n](value) for n, value in row.items()} if isinstance(row, dict) else row


@contextmanager
def _lines(file: Path) -> Iterator[IO[str]]:
    with _open(file) as stream:
        # Bytes that are not UTF-8 become surrogates, so that only their row is lost.
        yield io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _records(lines: IO[str], file: Path) -> Found:
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
                    f"{file}, line {begin}: a quote is not closed, so the rows after it cannot be told from one another"
                ) from None
            yield begin, RowError("", f"is not CSV: {error}")
            continue
        if not header:
            header = fields
            if len(set(header)) < len(header) or not all(header):
                names = ", ".join(header)
                raise PosttrainError(f"{file}: the header must name each column once, and has {names!r:.200}")
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
    if value in ("", "true", "false", "True", "False"):
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
