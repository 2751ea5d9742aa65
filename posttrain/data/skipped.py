"""Rows that do not fit: where they are, what is wrong with them, and the file of those that are left out."""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.data.row import INDEX_COLUMN, Place, RowError

MAX_SHOWN = 5


@dataclass
class Skipped:
    """Rows left out: how many, and a JSON-lines file with file, line (Parquet: number), field, reason and the row."""

    path: Path
    count: int = 0
    messages: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """Start again, since a stream that is read again finds the same rows again."""
        self.count = 0
        self.messages.clear()
        self.path.unlink(missing_ok=True)

    def add(self, place: Place, row_error: RowError, row: Any, keep: bool = True) -> None:
        """Add a row, to the file too unless `keep` is false; `row` is the error itself for one that cannot be read."""
        self.count += 1
        if len(self.messages) < MAX_SHOWN:
            self.messages.append(message(place, row_error))
        if not keep:
            return
        where = "line" if place.unit == "line" else "number"  # `row` is the row itself
        entry = {"file": place.file, where: place.number, "field": row_error.field or None, "reason": row_error.reason}
        kept = {name: value for name, value in row.items() if name != INDEX_COLUMN} if isinstance(row, dict) else None
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps({**entry, "row": kept}, ensure_ascii=False, default=str) + "\n")

    def first(self, most: int) -> list[tuple[str, int, str]]:
        """(file, line or row in it, what is wrong) of the first rows."""
        with self.path.open(encoding="utf-8") as file:
            entries = [json.loads(line) for line in itertools.islice(file, most)]
        return [
            (entry["file"], entry.get("line", entry.get("number")), f"{entry['field'] or 'row'}: {entry['reason']}")
            for entry in entries
        ]

    def report(self, key: str) -> str:
        """The message for these rows, with the first of them; it begins with `key`."""
        what, them = ("1 row does not fit", "it") if self.count == 1 else (f"{self.count} rows do not fit", "them")
        more = [f"  and {self.count - len(self.messages)} more"] if self.count > len(self.messages) else []
        fix = f"fix {them}"
        if key.startswith("data."):
            fix += f", or leave {them} out with data.on_error=skip"
        return "\n".join([f"{key}: {what}; {fix}", *(f"  {line}" for line in self.messages), *more])


def message(place: Place, row_error: RowError) -> str:
    """`file, line 3, messages[1].role: what is wrong`."""
    field = f", {row_error.field}" if row_error.field else ""
    return f"{place.file}, {place.unit} {place.number}{field}: {row_error.reason}"
