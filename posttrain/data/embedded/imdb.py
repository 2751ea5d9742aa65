"""Movie reviews with labels, as in the sentiment study of the DPO paper: prompts, texts, a split for a gold reward.

Reviews of IMDB (Maas et al., "Learning Word Vectors for Sentiment Analysis", ACL 2011: its training half) and of Rotten
Tomatoes (Pang and Lee, "Seeing Stars", ACL 2005), half of them positive.

- `train`, `eval`: the opening of a review, whole sentences of `LEAST` to `MOST` words together, for SFT (`text`), and
  its first `WORDS` words, for sampling (`prompt`)
- `gold`: other reviews, whole (`text`), which only the gold reward (`posttrain.rewards.reviews`) is trained on

A review with the same first or last `WORDS` words as an earlier one is left out: it is the same review or prompt.
"""

from __future__ import annotations

import csv
import html
import io
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.embedded import cache, wheels

if TYPE_CHECKING:
    from datasets import DatasetDict

VERSION = 1  # a part of the cache's name: raise it with every change of what `load` returns
WORDS = 8
LEAST, MOST = 11, 24
SIZES = {"eval": 1024, "train": 8192}  # the rest is `gold`
SEED = 0

_BREAK = re.compile(r"<br\s*/?>")
_SPACED = re.compile(r" (?=[,.!?;:)]|n't\b|'s\b)|(?<=\() ")  # Rotten Tomatoes comes as tokens
_END = re.compile(r"[.!?][\"')]*(?=\s|$)")
_SIGNS = re.compile(r"[^a-z0-9]")


def load() -> DatasetDict:
    """The splits train, eval and gold, disjoint by text and by prompt; cached after the first call.

    Columns: `prompt` (the first `WORDS` words), `text` (str), `label` (bool, true = positive), `source` (imdb or
    rotten_tomatoes) and `review` (the whole of it). The order is shuffled and fixed.

    Raises `PosttrainError` where the reviews have to be downloaded and cannot be.
    """
    from datasets import load_from_disk

    return load_from_disk(str(cache.cached(f"reviews-{VERSION}", _build)))


def _build(folder: Path) -> None:
    wheels.save(split(distinct(read(wheels.reviews()))), folder)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of the wheel's CSV file, cleaned."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(io.StringIO(file.read()))
        return [{"review": clean(r["text"]), "label": r["label"] == "1", "source": r["source"]} for r in rows]


def clean(text: str) -> str:
    """Text without HTML and without spaces before punctuation."""
    return _SPACED.sub("", " ".join(html.unescape(_BREAK.sub(" ", text)).split()))


def distinct(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, without those that begin or end like an earlier one; only letters and digits are compared."""
    seen: set[str] = set()
    kept = []
    for row in rows:
        words = row["review"].lower().split()
        ends = {_SIGNS.sub("", " ".join(part)) for part in (words[:WORDS], words[-WORDS:])}
        if not ends & seen:
            kept.append(row)
        seen |= ends
    return kept


def opening(review: str) -> str | None:
    """The first sentences of a review, as few as have `LEAST` words; `None` where these are more than `MOST`."""
    for end in _END.finditer(review):
        words = len(review[: end.end()].split())
        if words >= LEAST:
            return review[: end.end()] if words <= MOST else None
    return None


def split(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """`SIZES` of the reviews that begin with short sentences, and all others as `gold`."""
    rows = list(rows)
    random.Random(SEED).shuffle(rows)
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in (*SIZES, "gold")}
    for row in rows:
        prompt, text = " ".join(row["review"].split()[:WORDS]), opening(row["review"])
        open_ = (name for name, size in SIZES.items() if len(parts[name]) < size)
        part = next(open_, "gold") if text else "gold"
        shown = row["review"] if part == "gold" else text
        parts[part].append({"prompt": prompt, "text": shown, **row})
    return parts
