"""Strict parsing of JSON: no value is changed silently.

Duplicate keys, numbers that do not fit 64 bits, NaN and lone surrogates are errors.
"""

import json
import re
from typing import Any

from posttrain.data.row import RowError, shortened


def decode_text(raw: bytes) -> str:
    """UTF-8 as text; raises `RowError` for other bytes."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError("", f"is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None


def parse_json(text: str) -> Any:
    """The JSON value of `text`; raises `RowError` for broken JSON, and for values that cannot be stored exactly."""
    try:
        value, end = DECODER.raw_decode(text, len(text) - len(text.lstrip()))
    except json.JSONDecodeError as error:
        raise RowError("", f"is not JSON: {STARTS.sub('', error.msg)} at column {error.colno}") from None
    except RecursionError:
        raise RowError("", "is nested too deeply") from None
    except ValueError as error:
        raise RowError("", str(error)) from None
    if rest := text[end:].strip():
        raise RowError("", f"is not JSON: more after the object at column {end + 1}: {rest!r:.40}")
    check_characters(value, text)
    return value


def parse_json_string(value: Any, field: str) -> Any:
    """The value of a string of JSON; a value that is no string as it is; raises `RowError` for broken JSON."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except RowError as row_error:
        raise RowError(field, f"{row_error.reason}, got {shortened(value)}") from None


def as_object(value: Any, text: str) -> dict[str, Any]:
    """`value`, read from `text`, if it is an object; raises `RowError` for another."""
    if not isinstance(value, dict):
        raise RowError("", f"expected an object {{...}}, got {text.strip()!r:.60}")
    return value


def check_characters(value: Any, text: str) -> None:
    """Raise `RowError` where `value`, read from `text`, has half of a surrogate pair."""
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise RowError("", "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character") from None
        except RecursionError:
            raise RowError("", "is nested too deeply") from None


# The end of some messages of the parser, behind which it would state a position; it is cut off.
STARTS = re.compile(r"( starting)? at$")


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(1 << 63) <= int(digits) < 1 << 63:
        raise ValueError(f"holds the number {digits:.24}, which does not fit 64 bits; write it as text")
    return int(digits)


def _number(digits: str) -> float:
    if abs(value := float(digits)) == float("inf"):
        raise ValueError(f"holds the number {digits:.24}, which is too large; write it as text")
    return value


def reject_constant(name: str) -> None:
    raise ValueError(f"is not JSON: {name} is no number there; write null")


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has the key {twice!r:.40} twice")
    return made


DECODER = json.JSONDecoder(
    object_pairs_hook=_reject_duplicate_keys, parse_int=_integer, parse_float=_number, parse_constant=reject_constant
)
