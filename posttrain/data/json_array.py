"""Rows of a JSON file that is read whole: an array, an object around the array, or objects over several lines."""

import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

from posttrain.data.json_values import DECODER, STARTS, as_object, check_characters, decode_text, parse_json
from posttrain.data.row import RowError
from posttrain.errors import PosttrainError


def read(
    file: Path, raw: bytes, is_array: bool, wrapper: re.Match[bytes] | None
) -> Generator[tuple[int, Any], None, None]:
    """The rows in `raw`, with their lines; `wrapper` is the beginning of an object up to its first row."""
    try:
        text = decode_text(raw)
    except RowError as error:
        raise PosttrainError(f"{file}: {error.reason}") from None
    if not (is_array or wrapper):
        yield from _values(file, text, 0, "")
        return
    # The last bracket of what was matched opens the rows.
    position = len(wrapper[0].decode().rstrip("{ \t\r\n")) if wrapper else text.index("[") + 1
    end = yield from _values(file, text, position, "]")
    _check_end(file, text, end, wrapper[3].decode() if wrapper else None)


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
            raise _broken(file, text, error.pos, f"{STARTS.sub('', error.msg)} at column {error.colno}") from None
        if isinstance(value, RowError):
            yield line, value
        else:
            try:
                check_characters(value, text[seen:position])
                yield line, as_object(value, text[seen:position])
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
    """Raise `PosttrainError` for text behind the array, or for a second list of rows in the object around it."""
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
    """The value at `position` and its end; the value is a `RowError` for JSON that cannot be stored exactly."""
    try:
        return DECODER.raw_decode(text, position)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
        try:
            # Python refuses to read integers of several thousand digits.
            end = json.JSONDecoder(parse_int=str).raw_decode(text, position)[1]
        except RecursionError:
            raise json.JSONDecodeError("nested too deeply", text[: position + 80], position) from None
        return RowError("", reason), end
