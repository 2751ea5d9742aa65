"""Rows of one path, divided, in the columns that a trainer takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from posttrain.config import trainers
from posttrain.config.schema import DataConfig
from posttrain.data.columns import PAIRS, prompts, to_trainer_columns
from posttrain.data.formats import is_scored
from posttrain.data.reading import Template, display_path
from posttrain.data.split import Part, Split, split_rows
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TrainerRows:
    """Rows as the trainer takes them; `prompts` are held-out rows for the probe, `None` where they have no prompt."""

    train: Dataset
    held_out: Dataset | None
    prompts: Dataset | None
    divided: Split


def load_rows(config: DataConfig, kind: str, template: Template | None) -> TrainerRows:
    """Load, split and adapt the data of `config.path` for the trainer `kind`; raises `PosttrainError` for bad input."""
    divided = split_rows(config, kind, template=template)
    held_out = divided.held_out
    return TrainerRows(
        to_trainer(divided.train, kind),
        to_trainer(held_out, kind) if held_out else None,
        prompts_for(held_out, kind) if held_out else None,
        divided,
    )


def load_held_out_rows(config: DataConfig, kind: str) -> TrainerRows | None:
    """The held-out rows alone, as `train` too; KTO gets pairs as pairs. `None` where nothing is held out."""
    divided = split_rows(config, kind)
    held_out = divided.held_out
    if held_out is None:
        return None
    pairs = set(held_out.rows.column_names) >= set(PAIRS)
    rows = to_trainer(held_out, "dpo" if pairs and trainers.of(kind).reads == "labels" else kind)
    return TrainerRows(rows, rows, prompts_for(held_out, kind), divided)


def load_prompt_rows(config: DataConfig, kind: str, split: str) -> TrainerRows | None:
    """The prompts of `split` (train, eval), as trainer `kind` and its probe see them; `None` without such rows."""
    divided = split_rows(config, None)
    part = divided.train if split == "train" else divided.held_out
    if part is None:
        return None
    found = prompts_for(part, kind)
    if found is None:
        raise PosttrainError(
            f"data.path={display_path(config.path)}: no prompts to sample for: it has no column prompt, messages, or "
            "chosen and rejected; 'data.columns={prompt: THEIRS}' maps one"
        )
    return TrainerRows(found, None, found, divided)


def load_all_rows(config: DataConfig, name: str = "trl") -> Dataset:
    """All rows of `config.path` as they are stored, under our column names, or converted from the format `name`.

    Of those that are not converted only the prompts are checked: the caller knows what else he takes.
    """
    whole = replace(config, format=name, eval_size=0, eval_path=None, eval_split=None)
    return _first_rows(split_rows(whole, None, needed=("prompt",)).train)


def to_trainer(part: Part, kind: str) -> Dataset:
    """The first rows as the trainer `kind` takes them."""
    rows = _first_rows(part)
    if is_scored(rows.column_names, part.format):
        from posttrain.data import scored_answers

        rows = scored_answers.for_trainer(rows, kind, part.config.pairs, part.config.threshold)
    made = to_trainer_columns(rows, kind, part.format)
    return _with_float_weights(made) if {"weight", *PAIRS} <= {*made.column_names} else made


def prompts_for(part: Part, kind: str) -> Dataset | None:
    """The prompts of the first rows, with their other columns; `None` for plain text, which has no prompt."""
    rows = _first_rows(part)
    if is_scored(rows.column_names, part.format):
        from posttrain.data import scored_answers

        rows = scored_answers.for_trainer(rows, "grpo", part.config.pairs, None)
    # A trainer of prompts is probed on prompts as it gets them.
    return prompts(to_trainer_columns(rows, kind, part.format) if trainers.of(kind).samples_completions else rows)


def _with_float_weights(rows: Dataset) -> Dataset:
    """`rows` with their column `weight` as numbers."""
    from datasets import Value

    return rows.cast_column("weight", Value("float64"))


def _first_rows(part: Part) -> Dataset:
    rows = part.rows if part.limit is None else part.rows.select(range(min(part.limit, len(part.rows))))
    if not len(rows):
        raise PosttrainError(f"data.path={display_path(part.config.path)}: no rows for {part.name}")
    return rows
