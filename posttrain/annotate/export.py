"""Preference pairs from votes: by majority, or weighted by each annotator's agreement with the others."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.annotate.agreement import Votes, votes
from posttrain.annotate.answers import Answers
from posttrain.annotate.items import Item
from posttrain.errors import PosttrainError
from posttrain.runs.durable import write_atomic

FORMATS = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Written:
    """The counts of an export: `pairs` rows from `items` decided items; the other items by reason."""

    pairs: int
    items: int
    undecided: int
    skipped: int
    flagged: int


def write(answers: Answers, out: Path, rule: str, drop_flagged: bool) -> Written:
    """Write pairs to `out` and every vote to `OUT.votes.jsonl`; raises `PosttrainError` where no item is decided.

    A row has prompt, `chosen` and `rejected` as in the data, its other columns, `votes` (their number), `score` (the
    lead of the chosen completion, in (0, 1]), and `flags`.
    """
    given, cast = answers.by_item(), votes(answers)
    weights = reliability(cast) if rule == "weighted" else {}
    rows, lines, counts = [], [], {"items": 0, "undecided": 0, "skipped": 0, "flagged": 0}
    for item_id, own in given.items():
        item, flags = answers.items[item_id], sum(answer["flag"] for answer in own)
        leads = _leads(item, cast[item_id], rule, weights)
        kind = "skipped" if not cast[item_id] else "undecided" if not leads else "items"
        if drop_flagged and flags:
            kind, leads = "flagged", {}
        counts[kind] += 1
        for (chosen, rejected), lead in leads.items():
            pair = {"prompt": item.prompt, "chosen": item.completions[chosen], "rejected": item.completions[rejected]}
            rows.append({**item.extra, **pair, "votes": len(cast[item_id]), "score": lead, "flags": flags})
        lines.append(_line(item, own, leads))
    if lines:
        write_atomic(votes_file(out), "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
    if not rows:
        raise PosttrainError(
            f"{out}: nothing to write yet: of {len(given)} items with answers none has a preference"
            + (f" by {rule}" if given else "")
        )
    _write_rows(rows, out)
    return Written(len(rows), **counts)


def votes_file(out: Path) -> Path:
    return out.with_name(out.stem + ".votes.jsonl")


def majority(choices: Sequence[Hashable], count: int) -> dict[tuple[int, int], float]:
    """(chosen, rejected) -> lead, if more than half of the votes are for one of `count` completions; else {}.

    A tie is a vote for none of them. The lead is the difference of the two completions' shares of all votes.
    """
    for index in range(count):
        if choices.count(index) * 2 > len(choices):
            shares = [choices.count(i) / len(choices) for i in range(count)]
            return {(index, i): shares[index] - shares[i] for i in range(count) if i != index}
    return {}


def weighted(choices: Mapping[str, Hashable], count: int, weights: Mapping[str, float]) -> dict[tuple[int, int], float]:
    """As `majority`, for the completion with the largest total weight; a tie is divided among all completions."""
    total = sum(weights[name] for name in choices)
    shares = [0.0] * count
    for name, choice in choices.items():
        for index in range(count):
            shares[index] += weights[name] / total * (1 / count if choice == "tie" else choice == index)
    index = max(range(count), key=shares.__getitem__)
    leads = {(index, i): shares[index] - shares[i] for i in range(count) if i != index}
    return leads if min(leads.values()) > 1e-9 else {}


def reliability(cast: Votes) -> dict[str, float]:
    """Annotator -> weight: (equal + 1) / (compared + 2), over all votes of others on the same items.

    This is Laplace's estimate of the probability of agreement; without a comparison it is one half.
    """
    equal: dict[str, int] = {}
    compared: dict[str, int] = {}
    for given in cast.values():
        for name in given:
            equal.setdefault(name, 0)
            compared.setdefault(name, 0)
        for one, other in itertools.permutations(given, 2):
            equal[one] += given[one] == given[other]
            compared[one] += 1
    return {name: (equal[name] + 1) / (compared[name] + 2) for name in equal}


def _leads(
    item: Item, cast: Mapping[str, Hashable], rule: str, weights: Mapping[str, float]
) -> dict[tuple[int, int], float]:
    if not cast:
        return {}
    if rule == "majority":
        return majority(list(cast.values()), len(item.completions))
    return weighted(cast, len(item.completions), weights)


def _line(item: Item, own: Sequence[Mapping[str, Any]], leads: Mapping[tuple[int, int], float]) -> dict[str, Any]:
    kept = ("annotator", "choice", "place", "reason", "flag", "seconds", "time")
    return {
        "item": item.id,
        "prompt": item.prompt,
        "completions": list(item.completions),
        "preferred_by_data": item.preferred,
        "chosen": next(iter(leads))[0] if leads else None,
        "votes": [{name: answer[name] for name in kept} for answer in own],
    }


def _write_rows(rows: list[dict[str, Any]], out: Path) -> None:
    if out.suffix == ".jsonl":
        write_atomic(out, "".join(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows))
        return
    from posttrain.data.row import Place
    from posttrain.data.store import store

    # Stored as read data are: with the columns of all rows, and columns of several types.
    numbered = ((Place(str(out), "row", number), row) for number, row in enumerate(rows, 1))
    temporary = out.with_name(out.name + ".incomplete")
    try:
        store(numbered, dict, str(out))[0].to_parquet(temporary)
        os.replace(temporary, out)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
