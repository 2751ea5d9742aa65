"""Rows of JSON: an object a line; other files are read whole (`posttrain.data.json_array`)."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, TypeAlias

from posttrain.data.json_values import as_object, decode_text, parse_json
from posttrain.data.row import RowError

Found: TypeAlias = Iterator[tuple[int, dict[str, Any] | RowError]]

# The beginning of: an array of objects; objects over several lines each; one object, no row, that holds all rows.
_ARRAY = re.compile(rb"\s*\[\s*[\{\]]")
_SPREAD = re.compile(rb'\s*\{\s*\n\s*"')
_WRAPPER = re.compile(
    rb'\s*\{\s*("(?!(?:prompt|text|chosen|instruction|question)")\w+"\s*:\s*("[^"]*"|[\w.+-]+)\s*,\s*)*"(data|rows|examples|instances|items|train)"\s*:\s*\[\s*\{'
)


def read(file: Path, opened: Callable[[], AbstractContextManager[IO[bytes]]]) -> Found:
    """The rows of a file that `opened` opens, with their lines.

    Raises `PosttrainError` for an error behind which the next row cannot be found.
    """
    with opened() as stream:
        start = stream.read(1 << 16).removeprefix(b"\xef\xbb\xbf")
    line, _, rest = start.lstrip().partition(b"\n")
    a_line_each = line.rstrip().endswith(b"}") and rest.lstrip().startswith(b"{")
    wrapper = None if a_line_each else _WRAPPER.match(start)
    array = _ARRAY.match(start)
    with opened() as stream:
        if not (array or wrapper or _SPREAD.match(start)):
            yield from _objects(stream)
            return
        from posttrain.data import json_array

        yield from json_array.read(file, stream.read(), array is not None, wrapper)


def _objects(stream: Any) -> Found:
    for number, raw in enumerate(stream, 1):
        if raw.strip():
            try:
                text = decode_text(raw).rstrip()
                yield number, as_object(parse_json(text), text)
            except RowError as row_error:
                yield number, row_error
