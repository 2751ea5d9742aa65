"""The split into training and held-out rows, made before any conversion."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.schema import DataConfig
from posttrain.data import files
from posttrain.data.columns import PROMPT_COLUMNS, prompt_of
from posttrain.data.reading import Rows, display_path, read
from posttrain.data.sampled import data_file
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset

    from posttrain.data.rendering import Rendering
    from posttrain.data.skipped import Skipped

# A data set without a held-out split is divided with this seed, whatever the training seed is.
SPLIT_SEED = 0


@dataclass(frozen=True)
class Split:
    """Rows for training, held-out rows (None where there are none), and how these were chosen."""

    config: DataConfig
    train: Rows
    held_out: Rows | None
    how: str

    @property
    def skipped(self) -> list[Skipped]:
        return [rows.skipped for rows in (self.train, self.held_out) if rows is not None and rows.skipped]


def split_rows(
    config: DataConfig, kind: str | None, needed: tuple[str, ...] | None = None, template: Rendering | None = None
) -> Split:
    """The rows of `data.path` (and `data.eval_path`), for trainer `kind`; the rest as in `reading.read`."""
    own = config_for_path(config, config.path, config.split)
    train = read(own, "data.path", kind, needed, template)
    held_out: Rows | None = None
    if config.eval_path:
        held_out, how = read(eval_config(config), "data.eval_path", kind, None, template), "file"
    elif own.eval_split and _has_splits(own.path):
        held_out = read(replace(own, split=own.eval_split), "data.path", kind, None, template)
        how = own.eval_split
    elif config.eval_size:
        size: float | int = config.eval_size if config.eval_size < 1 else int(config.eval_size)
        if len(train.rows) < 2:
            rows = "one row" if len(train.rows) else "no rows"
            raise PosttrainError(
                f"data.path={display_path(config.path)}: {rows}, which cannot be split; set data.eval_size=0"
            )
        rest, drawn = hold_out(train.rows, size)
        train, held_out = replace(train, rows=rest), replace(train, rows=drawn, skipped=None)
        how = f"{config.eval_size:g} of {config.split}"
    else:
        how = "none"
    if config.min_score is not None:
        # After the split: rows held out at one threshold are not trained on at another.
        from posttrain.data.scored_answers import rows_from_score

        train = replace(train, rows=rows_from_score(train.rows, config.min_score, "train"))
        if held_out is not None and not config.eval_path:
            held_out = replace(held_out, rows=rows_from_score(held_out.rows, config.min_score, "held-out"))
    train = first_rows(train, config.max_train_rows, config, "train")
    return Split(config, train, held_out and first_rows(held_out, config.max_eval_rows, config, "held-out"), how)


def take(rows: Dataset, limit: int | None) -> Dataset:
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def first_rows(found: Rows, limit: int | None, config: DataConfig, name: str) -> Rows:
    """The first `limit` rows; raises `PosttrainError` where there are none."""
    rows = take(found.rows, limit)
    if not len(rows):
        raise PosttrainError(f"data.path={display_path(config.path)}: no rows for {name}")
    return replace(found, rows=rows)


def config_for_path(config: DataConfig, path: Any, split: str) -> DataConfig:
    """How to read `path`: a data set made by job=sample has TRL's columns, whatever the recipe's own data has."""
    file = data_file(path)
    if file == path:
        return replace(config, path=path, split=split)
    own: dict[str, Any] = {"columns": {}, "conversational": False, "format": "trl"}
    return replace(config, path=file, name=None, revision=None, split="train", eval_split=None, **own)


def eval_config(config: DataConfig) -> DataConfig:
    """How to read `data.eval_path`; of reasoning_gym the split is `test`, whose questions are not trained on."""
    made = isinstance(config.eval_path, str) and config.eval_path.startswith("reasoning_gym:")
    return config_for_path(config, config.eval_path, config.eval_split or ("test" if made else "train"))


def _has_splits(path: Any) -> bool:
    """Whether `path` has named splits: not for files or a single saved data set."""
    if not isinstance(path, str) or files.resolve(path):
        return False
    return not (Path(os.path.expanduser(path)) / "state.json").is_file()


def hold_out(rows: Dataset, size: float | int) -> tuple[Dataset, Dataset]:
    """Rows for training and held-out ones: a share below 1 or a number, drawn with `SPLIT_SEED`.

    Where rows repeat their prompt, as sampled completions do, whole prompts are held out until there are `size` rows:
    a prompt that was trained on says nothing about others. Raises `PosttrainError` where nothing
    would be left for either.
    """
    if not 0 < (size * len(rows) if size < 1 else size) <= len(rows) - 1:
        raise PosttrainError(
            f"data.eval_size={size:g}: of {len(rows)} rows that leaves none to train on; set a smaller share or number"
        )
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts_as_text(rows)):
        groups.setdefault(prompt or f"row {index}", []).append(index)
    if len(groups) < 2:
        raise PosttrainError(
            f"data.eval_size={size:g}: all {len(rows)} rows have the same prompt, so what is held out would have been "
            "trained on; set data.eval_size=0, or give other rows: data.eval_path=FILE"
        )
    if len(groups) == len(rows):
        parts = rows.train_test_split(test_size=size, seed=SPLIT_SEED)
        return parts["train"], parts["test"]
    keys = list(groups)
    random.Random(SPLIT_SEED).shuffle(keys)
    wanted = math.ceil(size * len(rows)) if size < 1 else size
    held_out: list[int] = []
    while len(held_out) < wanted and len(keys) > 1:
        held_out += groups[keys.pop()]
    train = [index for key in keys for index in groups[key]]
    random.Random(SPLIT_SEED).shuffle(train)
    return rows.select(train), rows.select(held_out)


def prompts_as_text(rows: Dataset) -> Iterator[str | None]:
    """The prompt of each row as text, to compare rows by; `None` for a row without one."""
    names = [name for name in PROMPT_COLUMNS if name in rows.column_names]
    for row in rows.select_columns(names) if names else ({} for _ in range(len(rows))):
        prompt = prompt_of(row)
        yield repr(prompt) if prompt else None
