"""The rows that jobs besides training read: held-out ones to evaluate on, and prompts to sample for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import DataConfig
from posttrain.data.columns import SCORE_COLUMNS
from posttrain.data.formats import PAIRS
from posttrain.data.loading import Data, concatenate, joined, load_parts, source_of
from posttrain.data.reading import display_path
from posttrain.data.split import split_rows
from posttrain.data.trainer_rows import TrainerRows, prompts_for, to_trainer
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset


def load_held_out(config: DataConfig, kind: str) -> Data:
    """Only the held-out rows, for job=evaluate (`train` is `eval`); for KTO, pairs stay pairs."""

    def made(part: DataConfig) -> TrainerRows | None:
        divided = split_rows(part, kind)
        if (held_out := divided.held_out) is None:
            return None
        pairs = set(held_out.rows.column_names) >= set(PAIRS)
        rows = to_trainer(held_out, part, "dpo" if pairs and trainers.of(kind).reads == "labels" else kind)
        return TrainerRows(rows, rows, prompts_for(held_out, part, kind), divided)

    parts = load_parts(config, made)
    rows = joined(config, {name: one.train for name, one in parts.items()})
    if rows is None:
        raise PosttrainError("data.eval_size=0: nothing is held out; set it, or data.eval_split or data.eval_path")
    prompts = joined(config, {name: one.prompts for name, one in parts.items()})
    return Data(rows, rows, prompts, source_of(config, parts, rows, rows), rows)


def load_prompts(config: DataConfig, kind: str, split: str) -> tuple[Dataset, dict[str, Any]]:
    """The prompts of `split` (train, eval), as trainer `kind` and its probe see them, each row once; and their source.

    Other columns stay, for reward functions. Raises `PosttrainError` where no rows are held out, or none has a prompt.
    """

    def made(part: DataConfig) -> TrainerRows | None:
        divided = split_rows(part, None)
        if (rows := divided.train if split == "train" else divided.held_out) is None:
            return None
        if (found := prompts_for(rows, part, kind)) is None:
            raise PosttrainError(
                f"data.path={display_path(part.path)}: no prompts to sample for: it has no column prompt, messages, or "
                "chosen and rejected; 'data.columns={prompt: THEIRS}' maps one"
            )
        return TrainerRows(found, None, found, divided)

    parts = load_parts(config, made)
    if not parts:
        raise PosttrainError(f"sample.split={split}: nothing is held out; set data.eval_size or data.eval_split")
    found = concatenate({name: one.train for name, one in parts.items()})
    found = found.remove_columns([column for column in found.column_names if column in SCORE_COLUMNS])
    # Sampled rows repeat their prompt, and so do data sets with several answers to one.
    first: dict[str, int] = {}
    for index, row in enumerate(found):
        first.setdefault(repr(row), index)
    found = found.select(list(first.values()))
    return found, source_of(config, parts, found, None)
