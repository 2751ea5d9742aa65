"""The items that people judge: a prompt and its completions, read from pairs, lists, or rows of one completion."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from posttrain.annotate import selection
from posttrain.annotate.candidates import Candidate, Group, as_text, choose, key
from posttrain.config.schema import DataConfig
from posttrain.data.columns import PAIRS, SCORE_COLUMNS, TRL_COLUMNS
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset

# The most completions of an item: one per digit key.
MAX_COMPLETIONS = 9
OWN_COLUMNS = {"completions", "scores", *SCORE_COLUMNS, *TRL_COLUMNS}


@dataclass(frozen=True)
class Item:
    """A question: which of `completions` is best? `extra` are the other columns of its row.

    `id` depends on prompt and completions only, and completions are sorted by digest. So the same question is the same
    item in any data, and the order does not show which completion the data prefers. `preferred` is the index of that
    completion, or None.
    """

    id: str
    prompt: Any
    completions: tuple[Any, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    preferred: int | None = None


def read(config: DataConfig, show: int, seed: int, by_information: bool) -> list[Item]:
    """Items of a data file, hub id or finished run of job=sample, `show` completions each, in the order to ask them.

    This is the order of the data, or with `by_information` the most informative first. Raises `PosttrainError` where
    there is nothing to compare.
    """
    from posttrain.data.loading import load

    rows = _all_rows(config)
    columns = set(rows.column_names)
    if {"instruction", "completions"} <= columns:
        groups = _lists(_all_rows(config, "ultrafeedback"), config.path)
    elif "completions" in columns:
        groups = _lists(rows, config.path)
    elif {"prompt", "completion"} <= columns and not set(PAIRS) <= columns:
        groups = _rows(rows, config.path)
    else:
        groups = _pairs(load(replace(config, eval_size=0, eval_path=None, eval_split=None), "dpo").train)
    groups = [group for group in map(_distinct, groups) if len(group.candidates) > 1]
    if not groups:
        raise PosttrainError(
            f"data.path={config.path}: no prompt has two different completions to compare; job=sample with sample.n=2 "
            "or more and sample.select=all makes some"
        )
    if by_information:
        groups = selection.order(groups, show, config.path)
    else:
        groups = [_draw(group, show, seed) for group in groups]
    # Rows with the same question are one item.
    return list({item.id: item for item in map(_item, groups)}.values())


def _pairs(rows: Dataset) -> list[Group]:
    groups = []
    for row in rows:
        pair = tuple(
            Candidate(row[side], _number(row.get(f"score_{side}")), _numbers(row.get(f"rewards_{side}")))
            for side in PAIRS
        )
        groups.append(Group(row["prompt"], pair, _extra(row), 0))
    return groups


def _lists(rows: Dataset, path: str) -> list[Group]:
    """Groups from rows of a prompt and `completions`, with `scores` (numbers) and `rewards` (dicts) in their order."""
    if "prompt" not in rows.column_names:
        raise PosttrainError(
            f"data.path={path}: completions need a column prompt, and the data has {', '.join(rows.column_names)}; "
            "'data.columns={prompt: THEIRS}' maps one"
        )
    groups = []
    for number, row in enumerate(rows, 1):
        _check(row["prompt"], f"data.path={path}: row {number}, column prompt")
        answers = row["completions"]
        if not isinstance(answers, list):
            raise PosttrainError(
                f"data.path={path}: row {number}, column completions: expected a list, got {answers!r:.80}"
            )
        sides = {}
        for column in ("scores", "rewards"):
            sides[column] = row.get(column) or [None] * len(answers)
            if not isinstance(sides[column], list) or len(sides[column]) != len(answers):
                raise PosttrainError(
                    f"data.path={path}: row {number}, column {column}: expected one for each of the {len(answers)} "
                    f"completions, got {sides[column]!r:.80}"
                )
        for answer in answers:
            _check(answer, f"data.path={path}: row {number}, column completions")
        candidates = tuple(
            Candidate(answer, _number(score), _numbers(rewards))
            for answer, score, rewards in zip(answers, sides["scores"], sides["rewards"], strict=True)
        )
        groups.append(Group(row["prompt"], candidates, _extra(row)))
    return groups


def _rows(rows: Dataset, path: str) -> list[Group]:
    """Groups from rows of a prompt and one `completion`, as job=sample with `select=all` writes them."""
    found: dict[str, tuple[dict[str, Any], list[Candidate]]] = {}
    for number, row in enumerate(rows, 1):
        for column in ("prompt", "completion"):
            _check(row[column], f"data.path={path}: row {number}, column {column}")
        candidate = Candidate(row["completion"], _number(row.get("score")), _numbers(row.get("rewards")))
        found.setdefault(key(row["prompt"]), (row, []))[1].append(candidate)
    return [Group(row["prompt"], tuple(candidates), _extra(row)) for row, candidates in found.values()]


def _check(value: Any, place: str) -> None:
    whole = isinstance(value, str) or (
        isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m and "content" in m for m in value)
    )
    if not whole:
        raise PosttrainError(f"{place}: expected text or a list of messages with role and content, got {value!r:.80}")


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
    except OverflowError:  # an integer beyond all floats
        return None


def _numbers(values: Any) -> dict[str, float]:
    known = {name: _number(value) for name, value in values.items()} if isinstance(values, dict) else {}
    return {name: value for name, value in known.items() if value is not None}


def _extra(row: Mapping[str, Any]) -> dict[str, Any]:
    # In JSON's types: dates as text, NaN and infinity as null.
    extra = {name: value for name, value in row.items() if name not in OWN_COLUMNS}
    return json.loads(json.dumps(extra, default=str), parse_constant=lambda name: None)


def _distinct(group: Group) -> Group:
    """The group with each completion once, and without empty ones."""
    first: dict[str, int] = {}
    for index, candidate in enumerate(group.candidates):
        if as_text(candidate.content).strip():
            first.setdefault(key(candidate.content), index)
    kept = tuple(first.values())
    preferred = kept.index(group.preferred) if group.preferred in kept else None
    candidates = tuple(group.candidates[index] for index in kept)
    return replace(group, candidates=candidates, preferred=preferred)


def _draw(group: Group, show: int, seed: int) -> Group:
    """`show` of the candidates, drawn by `seed` and prompt, in their original order."""
    count = len(group.candidates)
    lots = sorted(range(count), key=lambda i: key([seed, group.prompt, group.candidates[i].content]))
    return choose(group, sorted(lots[:show]))


def _item(group: Group) -> Item:
    preferred = group.preferred
    scores = [candidate.score for candidate in group.candidates]
    known = [score for score in scores if score is not None]
    if preferred is None and len(known) == len(scores) and known.count(max(known)) == 1:
        preferred = scores.index(max(known))
    keys = [key(candidate.content) for candidate in group.candidates]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return Item(
        id=key([group.prompt, sorted(keys)]),
        prompt=group.prompt,
        completions=tuple(group.candidates[i].content for i in order),
        extra=group.extra,
        preferred=None if preferred is None else order.index(preferred),
    )


def _all_rows(config: DataConfig, name: str = "trl") -> Dataset:
    """All rows of `config.path` as they are stored, under our column names, or converted from the format `name`.

    Of rows that are not converted, only the prompts are checked here.
    """
    from posttrain.data.split import split_rows

    whole = replace(config, format=name, eval_size=0, eval_path=None, eval_split=None)
    return split_rows(whole, None, needed=("prompt",)).train.rows
