"""Rows that do not fit: where they are, what is wrong with them, and the file of those that are left out."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.data.row import INDEX_COLUMN, Place, RowError


@dataclass
class Skipped:
    """Rows left out: how many, and a JSON-lines file with file, line (Parquet: number), field, reason and the row."""

    path: Path
    count: int = 0

    def clear(self) -> None:
        """Start again, since a stream that is read again finds the same rows again."""
        self.count = 0
        self.path.unlink(missing_ok=True)

    def add(self, place: Place, row_error: RowError, row: Any) -> None:
        self.count += 1
        where = "line" if place.unit == "line" else "number"  # `row` is the row itself
        entry = {"file": place.file, where: place.number, "field": row_error.field or None, "reason": row_error.reason}
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            if isinstance(row, dict):
                row = {name: value for name, value in row.items() if name != INDEX_COLUMN}
            file.write(json.dumps({**entry, "row": row}, ensure_ascii=False, default=str) + "\n")

    def first(self, most: int) -> list[tuple[str, int, str]]:
        """(file, line or row in it, what is wrong) of the first rows."""
        with self.path.open(encoding="utf-8") as file:
            entries = [json.loads(line) for line in itertools.islice(file, most)]
        return [
            (entry["file"], entry.get("line", entry.get("number")), f"{entry['field'] or 'row'}: {entry['reason']}")
            for entry in entries
        ]


def message(place: Place, row_error: RowError) -> str:
    """`file, line 3, messages[1].role: what is wrong`."""
    field = f", {row_error.field}" if row_error.field else ""
    return f"{place.file}, {place.unit} {place.number}{field}: {row_error.reason}"


def report(key: str, first: list[str], count: int) -> str:
    """The message for `count` rows that do not fit, with the `first` of them; it begins with `key`."""
    what, them = ("1 row does not fit", "it") if count == 1 else (f"{count} rows do not fit", "them")
    more = [f"  and {count - len(first)} more"] if count > len(first) else []
    fix = f"fix {them}"
    if key.startswith("data."):
        fix += f", or leave {them} out with data.on_error=skip"
    return "\n".join([f"{key}: {what}; {fix}", *(f"  {line}" for line in first), *more])
