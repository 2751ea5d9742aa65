"""Assignment of items to annotators; every answer is written to disk at once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.annotate.answers import Answers, answers_path, read
from posttrain.annotate.items import Item
from posttrain.errors import PosttrainError
from posttrain.runs.journal import Journal

# Seconds for which an item that is shown to someone is not given to others.
LEASE_SECONDS = 30 * 60


@dataclass(frozen=True)
class View:
    """The page of one person: an item with its completions in `order`, or no item if none is left.

    `ticket` is the id of the next answer, `last` that of the answer that can be undone. `before` is the undone answer
    to this item. `answered` and `left` count this person's items.
    """

    item: Item | None
    order: tuple[int, ...]
    ticket: str | None
    last: str | None
    before: dict[str, Any] | None
    answered: int
    left: int


class Session:
    """Gives items to annotators and appends to the answers file; not thread-safe."""

    def __init__(
        self,
        out: Path,
        items: Sequence[Item],
        *,
        data: str = "",
        overlap: int = 0,
        votes: int = 1,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
    ):
        path = answers_path(out)
        self.answers = Answers(read(path) if path.is_file() else ())
        if self.answers.task and self.answers.task["seed"] != seed:
            raise PosttrainError(
                f"--seed={seed}: {path} was begun with --seed {self.answers.task['seed']}; give that, or another --out"
            )
        self.journal = Journal(path)
        self.items = {item.id: item for item in items}
        self.needed, self.seed, self.clock = votes, seed, clock
        self.guidelines = ""  # Markdown that the page shows next to every item
        # The items with the lowest digests, so that they stay the same when rows are added to the data.
        everyone = dict.fromkeys(sorted(self.items, key=lambda item: _digest(seed, item))[:overlap])
        self.everyone = list(everyone)
        self.pool = [item for item in self.items if item not in everyone]
        if not self.answers.task:
            self._write({"kind": "task", "version": 1, "seed": seed, "data": data, "time": clock()})

    def view(self, annotator: str) -> View:
        """The page for `annotator`, with the same item until it is answered. Raises OSError if it cannot be stored."""
        undone = self.answers.undone.get(annotator, [])
        mine = self._open(annotator)
        item = self._current(annotator, mine)
        if item is not None and not self._holds(item.id, annotator):
            self._show(item, annotator)
        history = self.answers.history.get(annotator, [])
        return View(
            item=item,
            order=order(self.seed, item, annotator) if item else (),
            ticket=self.answers.ticket(annotator, item.id) if item else None,
            last=self.answers.ticket(annotator, history[-1]) if history else None,
            before=undone[-1] if undone and item and undone[-1]["item"] == item.id else None,
            answered=len(history),
            left=len(set(mine) | {answer["item"] for answer in undone}),
        )

    def answer(self, annotator: str, ticket: str, choice: int | str, reason: str = "", flag: bool = False) -> bool:
        """Store an answer, on disk when this returns; returns False for an answer that is no longer asked for.

        `choice` is "tie", "skip", or a place on the page, from 0. Raises `ValueError` for another.
        """
        item = self._known(ticket)
        if item is None or ticket != self.answers.ticket(annotator, item.id):
            return False
        places = order(self.seed, item, annotator)
        if choice not in ("tie", "skip") and choice not in range(len(places)):
            raise ValueError(f"choice {choice!r}: expected tie, skip, or 0 to {len(places) - 1}")
        if (annotator, item.id) in self.answers.standing:
            return False
        if item.id not in self.answers.items:
            return False  # never shown
        now = self.clock()
        since = self.answers.shown.get(item.id, {}).get(annotator)
        self._write(
            {
                "kind": "answer",
                "ticket": ticket,
                "item": item.id,
                "annotator": annotator,
                "choice": choice if isinstance(choice, str) else places[choice],
                "place": None if isinstance(choice, str) else choice,
                "reason": reason,
                "flag": flag,
                "seconds": None if since is None else round(now - since, 1),
                "time": now,
            }
        )
        return True

    def undo(self, annotator: str, ticket: str) -> bool:
        """Undo the last answer, which has the id `ticket`; returns False if it is not the last one."""
        history = self.answers.history.get(annotator, [])
        if not history or ticket != self.answers.ticket(annotator, history[-1]):
            return False
        line = {"ticket": ticket, "item": history[-1], "annotator": annotator}
        self._write({"kind": "undo", **line, "time": self.clock()})
        return True

    def _known(self, ticket: str) -> Item | None:
        item = ticket.rpartition("-")[0]
        return self.answers.items.get(item) or self.items.get(item)

    def _open(self, annotator: str) -> list[str]:
        """The items that this person may get, in order; items for everyone and others alternate."""
        done = set(self.answers.history.get(annotator, []))
        shared = [item for item in self.everyone if item not in done]
        # Each person gets shared items in another order; otherwise some would be answered by beginners only.
        shared.sort(key=lambda item: _digest(self.seed, item, annotator))
        now = self.clock()
        own = [item for item in self.pool if item not in done and self._free(item, annotator, now)]
        if (len(self.everyone) - len(shared)) * 2 <= len(done):
            return [*shared[:1], *own, *shared[1:]]
        return own + shared

    def _free(self, item: str, annotator: str, now: float) -> bool:
        holders = self.answers.shown.get(item, {})
        held = sum(now - since < LEASE_SECONDS for name, since in holders.items() if name != annotator)
        return self.answers.votes[item] + held < self.needed

    def _holds(self, item: str, annotator: str) -> bool:
        since = self.answers.shown.get(item, {}).get(annotator)
        return since is not None and self.clock() - since < LEASE_SECONDS

    def _current(self, annotator: str, mine: list[str]) -> Item | None:
        """The item of an undone answer, else the one that is already shown to this person, else the next."""
        if undone := self.answers.undone.get(annotator):
            return self._known(f"{undone[-1]['item']}-")
        before = next((item for item in mine if annotator in self.answers.shown.get(item, {})), None)
        return self.items[before or mine[0]] if mine else None

    def _show(self, item: Item, annotator: str) -> None:
        if item.id not in self.answers.items:
            self._write(
                {
                    "kind": "item",
                    "item": item.id,
                    "prompt": item.prompt,
                    "completions": list(item.completions),
                    "extra": dict(item.extra),
                    "preferred": item.preferred,
                }
            )
        self._write({"kind": "shown", "item": item.id, "annotator": annotator, "time": self.clock()})

    def _write(self, line: dict[str, Any]) -> None:
        self.journal.append(line)
        self.answers.add(line)


def order(seed: int, item: Item, annotator: str) -> tuple[int, ...]:
    """The index of the completion at each place of this person's page; all orders are equally likely."""
    return tuple(sorted(range(len(item.completions)), key=lambda index: _digest(seed, item.id, annotator, index)))


def _digest(*parts: object) -> bytes:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
