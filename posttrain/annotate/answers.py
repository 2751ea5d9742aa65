"""The answers file: append-only JSON lines, and the items and votes that they add up to.

    {"kind": "task", "seed": 0, "data": ...}                                    the first line
    {"kind": "item", "item": ID, "prompt": ..., "completions": [...], ...}      before the item is first shown
    {"kind": "shown", "item": ID, "annotator": ..., "time": ...}                reserved for the person for a while
    {"kind": "answer", "ticket": ..., "item": ID, "annotator": ..., "choice": ..., ...}
    {"kind": "undo", "ticket": ..., "item": ID, "annotator": ..., "time": ...}

A choice is the index of a completion, "tie" or "skip". The file contains the items, so that answers do not depend on
the data later.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from posttrain.annotate.items import Item
from posttrain.errors import PosttrainError

SUFFIX = ".answers.jsonl"
# Kind of a line -> the keys that it has, and their types.
SHOWN: dict[str, Any] = {"item": str, "annotator": str, "time": int | float}
TYPES: dict[str, dict[str, Any]] = {
    "task": {"seed": int},
    "item": {"item": str, "prompt": object, "completions": list, "extra": dict, "preferred": int | None},
    "shown": SHOWN,
    "answer": {
        **SHOWN,
        **{"ticket": str, "choice": int | str, "place": int | None, "reason": str, "flag": bool},
        "seconds": int | float | None,
    },
    "undo": {**SHOWN, "ticket": str},
}


def answers_path(out: Path) -> Path:
    """The path of the answers file for `out`."""
    return out.with_name(out.stem + SUFFIX)


class Answers:
    """The state after the lines of an answers file: items, and the valid answers in the order they were given."""

    def __init__(self, lines: Iterable[dict[str, Any]] = ()):
        self.task: dict[str, Any] = {}
        self.items: dict[str, Item] = {}
        self.standing: dict[tuple[str, str], dict[str, Any]] = {}  # (annotator, item) -> answer
        self.history: dict[str, list[str]] = {}  # annotator -> items, last answered last
        self.undone: dict[str, list[dict[str, Any]]] = {}  # annotator -> answers to give again, next one last
        self.undos: Counter[tuple[str, str]] = Counter()
        self.votes: Counter[str] = Counter()  # item -> answers that are no skip
        self.shown: dict[str, dict[str, float]] = {}  # item -> annotator -> time shown, until it is answered
        for line in lines:
            self.add(line)

    def add(self, line: dict[str, Any]) -> None:
        """Apply one line; a repeated answer changes nothing."""
        kind = line["kind"]
        if kind == "task":
            self.task = line
        elif kind == "item":
            self.items[line["item"]] = Item(
                line["item"], line["prompt"], tuple(line["completions"]), line["extra"], line["preferred"]
            )
        elif kind == "shown":
            self.shown.setdefault(line["item"], {})[line["annotator"]] = line["time"]
        elif kind == "answer":
            self._answer(line)
        else:
            self._undo(line)

    def ticket(self, annotator: str, item: str) -> str:
        """The id of this person's next answer to the item; an undo gives a new one, so no answer counts twice."""
        return f"{item}-{self.undos[annotator, item]}"

    def _answer(self, line: dict[str, Any]) -> None:
        annotator, item = line["annotator"], line["item"]
        if (annotator, item) in self.standing or line["ticket"] != self.ticket(annotator, item):
            return
        self.standing[annotator, item] = line
        self.history.setdefault(annotator, []).append(item)
        self.undone[annotator] = [before for before in self.undone.get(annotator, []) if before["item"] != item]
        self.shown.get(item, {}).pop(annotator, None)
        self.votes[item] += line["choice"] != "skip"

    def _undo(self, line: dict[str, Any]) -> None:
        annotator, item = line["annotator"], line["item"]
        before = self.standing.get((annotator, item))
        if before is None or before["ticket"] != line["ticket"]:
            return
        del self.standing[annotator, item]
        self.history[annotator].remove(item)
        self.undone.setdefault(annotator, []).append(before)
        self.undos[annotator, item] += 1
        self.shown.setdefault(item, {})[annotator] = line["time"]
        self.votes[item] -= before["choice"] != "skip"

    def by_item(self) -> dict[str, list[dict[str, Any]]]:
        """Items that someone answered or skipped, each with its valid answers."""
        found: dict[str, list[dict[str, Any]]] = {}
        for (_, item), answer in self.standing.items():
            found.setdefault(item, []).append(answer)
        return found

    def annotators(self) -> list[str]:
        return sorted(name for name, items in self.history.items() if items)


def read(path: Path) -> list[dict[str, Any]]:
    """The complete lines of an answers file, also while a server appends; raises `PosttrainError` for another file."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise PosttrainError(f"{path}: cannot be read: {error.strerror}") from error
    lines: list[dict[str, Any]] = []
    items: dict[str, int] = {}  # item -> number of its completions
    # Text after the last line end is a line that a kill has cut.
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not _fits(value, items) or (number == 1) != (value["kind"] == "task"):
            raise PosttrainError(
                f"{path}, line {number}: not a line of an answers file: {line[:60].decode(errors='replace')!r}; "
                "repair or remove that line, or choose another --out"
            )
        lines.append(value)
    return lines


def _fits(line: Any, items: dict[str, int]) -> bool:
    """Whether a line has its keys, and is about one of the `items` before it, to which a line of an item adds."""
    kind = line.get("kind") if isinstance(line, dict) else None
    if not isinstance(kind, str) or kind not in TYPES:
        return False
    if not all(key in line and isinstance(line[key], of) for key, of in TYPES[kind].items()):
        return False
    if kind == "task":
        return True
    item = line["item"]
    if kind == "item":
        items[item] = len(line["completions"])
    if item not in items:
        return False
    return kind != "answer" or line["choice"] in ("tie", "skip") or line["choice"] in range(items[item])
