"""A raw row of data: the place where it stands, and its columns or what is wrong with it."""

from __future__ import annotations

from typing import Any, NamedTuple


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
