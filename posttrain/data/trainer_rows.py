"""Rows of one path, divided, in the columns that a trainer takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from posttrain.config import trainers
from posttrain.config.schema import DataConfig
from posttrain.data.columns import TRL_COLUMNS, choose_columns
from posttrain.data.formats import PAIRS, is_scored
from posttrain.data.reading import Rows
from posttrain.data.split import Split

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TrainerRows:
    """Rows as the trainer takes them; `prompts` are held-out rows for the probe, `None` where they have no prompt."""

    train: Dataset
    held_out: Dataset | None
    prompts: Dataset | None
    divided: Split


def for_trainer(divided: Split, kind: str) -> TrainerRows:
    """The rows of a split, as the trainer `kind` takes them."""
    config, held_out = divided.config, divided.held_out
    return TrainerRows(
        to_trainer(divided.train, config, kind),
        to_trainer(held_out, config, kind) if held_out else None,
        prompts_for(held_out, config, kind) if held_out else None,
        divided,
    )


def to_trainer(found: Rows, config: DataConfig, kind: str) -> Dataset:
    """Rows as the trainer `kind` takes them."""
    made = to_trainer_columns(_answers_apart(found, config, kind), kind, found.format)
    if not {"weight", *PAIRS} <= {*made.column_names}:
        return made
    from datasets import Value

    return made.cast_column("weight", Value("float64"))


def to_trainer_columns(dataset: Dataset, kind: str, name: str = "trl") -> Dataset:
    """Rows as the trainer `kind` takes them; columns that are not TRL's stay, for reward functions.

    Raises `PosttrainError` for the wrong columns.
    """
    found, trainer = choose_columns(dataset.column_names, kind, name), trainers.of(kind)
    if {*found} >= {*PAIRS}:
        found = ("prompt", *found)
    if trainer.reads != "pairs" or not trainer.weights_pairs:
        from posttrain.data import conversion

        dataset, found = conversion.convert(dataset, kind, found)
    return _without_other_texts(dataset, found)


def prompts_for(found: Rows, config: DataConfig, kind: str) -> Dataset | None:
    """The prompts of rows, with their other columns; `None` for plain text, which has no prompt."""
    rows = _answers_apart(found, replace(config, threshold=None), "grpo")
    # A trainer that samples is probed on the same prompts as it is trained on.
    if trainers.of(kind).samples_completions:
        rows = to_trainer_columns(rows, kind, found.format)
    if "prompt" not in rows.column_names and "messages" in rows.column_names:
        from posttrain.data.conversion import turns_to_answer

        rows = turns_to_answer(rows).filter(lambda row: bool(row["prompt"]))
    return _without_other_texts(rows, ("prompt",)) if "prompt" in rows.column_names else None


def _without_other_texts(rows: Dataset, names: tuple[str, ...]) -> Dataset:
    """Rows without TRL's columns other than `names`; columns that are not TRL's stay."""
    return rows.remove_columns([c for c in rows.column_names if c in TRL_COLUMNS and c not in names])


def _answers_apart(found: Rows, config: DataConfig, kind: str) -> Dataset:
    """Rows in TRL's columns; scored or rated answers become what `kind` learns from."""
    if not is_scored(found.rows.column_names, found.format):
        return found.rows
    from posttrain.data import scored_answers

    return scored_answers.for_trainer(found.rows, kind, config.pairs, config.threshold)
