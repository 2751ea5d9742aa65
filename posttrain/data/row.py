"""A raw row of data: its place, its columns or the error in it; checks of a field."""

from typing import Any, NamedTuple


class RowError(Exception):
    """An error in one row: the field (empty for the whole row) and the reason."""

    def __init__(self, field: str, reason: str):
        super().__init__(reason)
        self.field, self.reason = field, reason


class Place(NamedTuple):
    """Where a row is: `unit` is line (a text file) or row (Parquet, the hub); both count from 1."""

    file: str
    unit: str
    number: int


# A column with the row's number in its data set; it exists only while rows are stored.
INDEX_COLUMN = "__index__"
Row = tuple[Place, "dict[str, Any] | RowError"]


def text(value: Any, field: str, empty: bool = False) -> str:
    """`value`, if it is text; raises `RowError` otherwise, and for blank text unless `empty`."""
    if not isinstance(value, str):
        raise RowError(field, f"expected text, got {shortened(value)}" if value is not None else "is missing")
    if not value.strip() and not empty:
        raise RowError(field, "is empty")
    return value


def display_path(path: Any) -> str:
    """A path, or a list of them, as a person reads it."""
    return path if isinstance(path, str) else ", ".join(map(str, path))


def shortened(value: Any) -> str:
    return f"{value!r:.80}"
