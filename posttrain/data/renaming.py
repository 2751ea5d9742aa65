"""Columns under our names, as `data.columns` maps them: ours to theirs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from posttrain.data.formats import DETECTION_ROWS
from posttrain.data.row import Row, RowError
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset


def rename_rows(rows: Callable[[], Iterator[Row]], columns: dict[str, str]) -> Callable[[], Iterator[Row]]:
    """`rows` with renamed columns; raises `PosttrainError` for a column that is not in the first rows."""
    first = itertools.islice((row for _, row in rows()), DETECTION_ROWS)
    if have := list(dict.fromkeys(name for row in first if isinstance(row, dict) for name in row)):
        _check_names(columns, have)

    def renamed() -> Iterator[Row]:
        for place, row in rows():
            yield place, row if isinstance(row, RowError) else _renamed(row, columns)

    return renamed


def _renamed(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    gone = {*columns, *columns.values()}
    moved = {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    return {**{name: value for name, value in row.items() if name not in gone}, **moved}


def rename_dataset(dataset: Dataset, columns: dict[str, str]) -> Dataset:
    """Rename columns by `{ours: theirs}`; a column that already has the new name is dropped.

    One of theirs may have several of our names.
    """
    _check_names(columns, dataset.column_names)
    in_the_way = [ours for ours, theirs in columns.items() if ours != theirs and ours in dataset.column_names]
    dataset = dataset.remove_columns([c for c in in_the_way if c not in columns.values()])
    first: dict[str, str] = {}
    copies = {ours: theirs for ours, theirs in columns.items() if first.setdefault(theirs, ours) != ours}
    dataset = dataset.rename_columns({theirs: ours for theirs, ours in first.items() if ours != theirs})
    return dataset.map(lambda row: {ours: row[first[theirs]] for ours, theirs in copies.items()}) if copies else dataset


def _check_names(columns: dict[str, str], have: list[str]) -> None:
    """Raise `PosttrainError` for a name of theirs, in `data.columns`, that the data does not have."""
    for ours, theirs in columns.items():
        if theirs not in have:
            raise PosttrainError(f"data.columns.{ours}={theirs}: no such column; the data has {', '.join(have)}")
