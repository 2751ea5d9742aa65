"""Scored, ranked or rated answers to a prompt, as pairs, labels, demonstrations or prompts; rows by their score."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.data.formats import RATED_COLUMNS, SCORED_COLUMNS
from posttrain.data.row import Place
from posttrain.data.store import store
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset

SEED = 0


def for_trainer(rows: Dataset, kind: str, pairs: str, threshold: float | None) -> Dataset:
    """Scored or rated answers, converted to the TRL columns that the trainer `kind` learns from.

    - reward, dpo and others of pairs: answers whose scores differ; `weight` is 1 / (pairs of the prompt), so that a
      prompt's weights sum to one; `pairs=one` keeps one of them, drawn with a fixed seed
    - kto: every answer, good from `threshold` on; without one, the best and the worst of several, and thumbs as given
    - sft and the like: the best of several answers; of single ones those from `threshold` on, or with a thumb up
    - those that sample: prompts

    Raises `PosttrainError` where a threshold is missing, or nothing is left.
    """
    several, reads = "scores" in rows.column_names, trainers.of(kind).reads
    if reads == "prompts":
        rows = rows.remove_columns([c for c in (*SCORED_COLUMNS, *RATED_COLUMNS) if c in rows.column_names])
        return rows if several else _each_prompt_once(rows)
    if not several and reads != "pairs" and threshold is None:
        _check_thumbs(rows, kind)

    def made() -> Iterator[dict[str, Any]]:
        grouped = _by_prompt(rows) if reads == "pairs" and not several else _each(rows, several)
        for row, answers in grouped:
            if reads == "pairs":
                yield from _pairs(row, answers, pairs)
            elif reads == "labels":
                yield from _labels(row, answers, threshold, several)
            else:
                yield from _demonstrations(row, answers, threshold, several)

    if next(made(), None) is None:
        differ = "no prompt has two answers that differ in score"
        what = differ if reads == "pairs" else f"no answer reaches data.threshold={threshold}"
        raise PosttrainError(f"data.format: {what}, so {kind} has nothing to learn from")
    counted = ((Place("", "row", n), row) for n, row in enumerate(made(), 1))
    return store(counted, lambda row: row, "data.format")[0]


Answers = list[tuple[Any, float]]


def _each(rows: Dataset, several: bool) -> Iterator[tuple[dict[str, Any], Answers]]:
    for row in rows:
        said, scores = (row.pop(name) for name in (SCORED_COLUMNS if several else RATED_COLUMNS))
        yield row, list(zip(said, scores, strict=True)) if several else [(said, scores)]


def _by_prompt(rows: Dataset) -> Iterator[tuple[dict[str, Any], Answers]]:
    """Single answers grouped by prompt; it keeps only the prompts' digests and the rows' numbers in memory."""
    groups: dict[int, list[int]] = {}
    for index, prompt in enumerate(rows["prompt"]):
        groups.setdefault(hash(repr(prompt)), []).append(index)
    for indices in groups.values():
        members = [rows[index] for index in indices]
        answers = [(row.pop("completion"), float(row.pop("rating"))) for row in members]
        yield members[0], answers


def _pairs(row: dict[str, Any], answers: Answers, pairs: str) -> Iterator[dict[str, Any]]:
    ordered = sorted(answers, key=lambda answer: -answer[1])
    found = [(a, b) for (a, high), (b, low) in itertools.combinations(ordered, 2) if high > low]
    weight = 1.0
    if found and pairs == "one":
        found = [random.Random(f"{SEED}/{row['prompt']!r}").choice(found)]
    elif found:
        weight = 1 / len(found)
    for chosen, rejected in found:
        yield {**row, "chosen": chosen, "rejected": rejected, "weight": weight}


def _labels(row: dict[str, Any], answers: Answers, threshold: float | None, several: bool) -> Iterator[dict[str, Any]]:
    if threshold is None and several:
        ordered = sorted(answers, key=lambda answer: -answer[1])
        if ordered[0][1] > ordered[-1][1]:
            yield {**row, "completion": ordered[0][0], "label": True}
            yield {**row, "completion": ordered[-1][0], "label": False}
        return
    for said, score in answers:
        yield {**row, "completion": said, "label": bool(score) if threshold is None else score >= threshold}


def _demonstrations(
    row: dict[str, Any], answers: Answers, threshold: float | None, several: bool
) -> Iterator[dict[str, Any]]:
    said, score = max(answers, key=lambda answer: answer[1])
    if (threshold is None and (several or score)) or (threshold is not None and score >= threshold):
        yield {**row, "completion": said}


def _check_thumbs(rows: Dataset, kind: str) -> None:
    from datasets import Value

    if rows.features["rating"] != Value("bool"):
        values = [value for value in rows["rating"] if value is not None]
        raise PosttrainError(
            f"data.threshold: {kind} needs to know which ratings are good; they go from {min(values):g} to "
            f"{max(values):g}: set the lowest good one"
        )


def _each_prompt_once(rows: Dataset) -> Dataset:
    first: dict[int, int] = {}
    for index, prompt in enumerate(rows["prompt"]):
        first.setdefault(hash(repr(prompt)), index)
    return rows.select(list(first.values()))


def rows_from_score(rows: Dataset, least: float, name: str) -> Dataset:
    """The rows whose `score` is at least `least` (`data.min_score`); rows without a score are dropped."""
    key = f"data.min_score={least:g}"
    if "score" not in rows.column_names:
        raise PosttrainError(
            f"{key}: the data has no column score, but {', '.join(rows.column_names)}; job=sample with a reward and "
            "sample.select=all, best, top or threshold writes one"
        )
    scores = rows["score"]
    if not all(score is None or isinstance(score, (int, float)) for score in scores):
        raise PosttrainError(f"{key}: the column score holds other things than numbers")
    kept = [index for index, score in enumerate(scores) if score is not None and score >= least]
    if not kept:
        best = max((score for score in scores if score is not None and score == score), default=None)
        highest = "none has a score" if best is None else f"the highest score is {best:g}"
        fix = "" if name == "train" else ", or hold out more (data.eval_size, data.eval_path)"
        raise PosttrainError(f"{key}: none of the {len(rows)} rows for {name} is left, {highest}; lower it{fix}")
    return rows.select(kept)
