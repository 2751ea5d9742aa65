"""Rows of JSON: an object a line, an array of objects, or an object that has the array. Nothing is altered in silence:
duplicate keys, numbers that do not fit, NaN and halves of characters are errors.
"""

import json
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, TypeAlias

from posttrain.data.row import RowError
from posttrain.errors import PosttrainError

Found: TypeAlias = Iterator[tuple[int, dict[str, Any] | RowError]]

# An array of objects; objects over several lines each; a file that is one object, of which one value are the rows.
_ARRAY = re.compile(rb"\s*\[\s*[\{\]]")
_SPREAD = re.compile(rb'\s*\{\s*\n\s*"')
_WRAPPER = re.compile(
    rb'\s*\{\s*("\w+"\s*:\s*("[^"]*"|[\w.+-]+)\s*,\s*)*"(data|rows|examples|instances|items|train)"\s*:\s*\[\s*\{'
)


def read(file: Path, opened: Callable[[], AbstractContextManager[IO[bytes]]]) -> Found:
    """The rows of a file that `opened` opens, with their lines.

    Raises `PosttrainError` where it is broken so that where its next row begins is unknown.
    """
    with opened() as stream:
        start = stream.read(1 << 16).removeprefix(b"\xef\xbb\xbf")
    line, _, rest = start.lstrip().partition(b"\n")
    a_line_each = line.rstrip().endswith(b"}") and rest.lstrip().startswith(b"{")
    wrapped = None if a_line_each else _WRAPPER.match(start)
    array = _ARRAY.match(start)
    with opened() as stream:
        if not (array or wrapped or _SPREAD.match(start)):
            yield from _objects(stream)
            return
        try:
            text = _text(stream.read())
        except RowError as row_error:
            raise PosttrainError(f"{file}: {row_error.reason}") from None
    if not (array or wrapped):
        yield from _values(file, text, 0, "")
        return
    # The last bracket of what was matched opens the rows.
    position = len(wrapped[0].decode().rstrip("{ \t\r\n")) if wrapped else text.index("[") + 1
    end = yield from _values(file, text, position, "]")
    _check_end(file, text, end, wrapped[3].decode() if wrapped else None)


def _objects(stream: Any) -> Found:
    for number, raw in enumerate(stream, 1):
        if raw.strip():
            try:
                text = _text(raw).rstrip()
                yield number, _dict(parse_json(text), text)
            except RowError as row_error:
                yield number, row_error


def _values(file: Path, text: str, position: int, closing: str) -> Generator[tuple[int, Any], None, int]:
    """The rows from `position` on, with commas between them, up to `closing`; without one, to the end of the text.

    Returns where they end.
    """
    line, seen = text.count("\n", 0, position) + 1, position
    position = _skip_space(text, position)
    while position < len(text) and text[position] != closing:
        line, seen = line + text.count("\n", seen, position), position
        try:
            value, position = _value(text, position)
        except json.JSONDecodeError as error:
            raise _broken(file, text, error.pos, f"{_STARTS.sub('', error.msg)} at column {error.colno}") from None
        if isinstance(value, RowError):
            yield line, value
        else:
            try:
                _check_characters(value, text[seen:position])
                yield line, _dict(value, text[seen:position])
            except RowError as row_error:
                yield line, row_error
        position = _skip_space(text, position)
        if not closing:
            continue
        if position < len(text) and text[position] == ",":
            position = _skip_space(text, position + 1)
            if text[position : position + 1] in ("]", ","):
                raise _broken(file, text, position, "a comma with no row after it")
        elif position < len(text) and text[position] != closing:
            raise _broken(file, text, position, "expected a comma between rows")
    if closing and position >= len(text):
        raise _broken(file, text, position, "the array does not end; the file is cut short")
    return position


def _broken(file: Path, text: str, position: int, reason: str) -> PosttrainError:
    return PosttrainError(f"{file}, line {text.count(chr(10), 0, position) + 1}: is not JSON: {reason}")


def _check_end(file: Path, text: str, position: int, wrapped: str | None) -> None:
    """Raise `PosttrainError` for what follows the rows: of the object around them nothing that may be rows too."""
    rest = text[position + 1 :].strip()
    if not wrapped:
        if rest:
            raise _broken(file, text, position, f"more after the array: {rest!r:.40}")
        return
    try:
        others = parse_json('{"": 0' + rest)
    except RowError:
        raise _broken(file, text, position, f"more after the array: {rest or 'no }'!r:.40}") from None
    if lists := [name for name, value in others.items() if isinstance(value, list) and value]:
        names = ", ".join((wrapped, *lists))
        raise PosttrainError(f"{file}: has several lists of rows ({names}); save each in its own file")


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


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError("", f"is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None


def parse_json(text: str) -> Any:
    """The JSON value that `text` is; raises `RowError` for anything else, and for what could not be kept."""
    try:
        value, end = DECODER.raw_decode(text, len(text) - len(text.lstrip()))
    except json.JSONDecodeError as error:
        raise RowError("", f"is not JSON: {_STARTS.sub('', error.msg)} at column {error.colno}") from None
    except RecursionError:
        raise RowError("", "is nested too deeply") from None
    except ValueError as error:
        raise RowError("", str(error)) from None
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


# Some of the parser's messages end in `at`, which its own text continues from.
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
