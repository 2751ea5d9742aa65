"""Images, video and sound in a column of a row."""

from typing import Any

from posttrain.data.row import RowError


def check(value: Any, name: str) -> None:
    """Raise `RowError` for a value that holds any: the model would learn a placeholder such as `<image>` as text."""
    if _holds_some(value):
        raise RowError(name, "is not empty, and the model reads text only; leave such rows out (data.on_error=skip)")


def _holds_some(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return any(map(_holds_some, value.values() if isinstance(value, dict) else value))
    return bool(value) and value != "[]"  # of a cell of CSV
