"""The columns of an `Example` -> the columns that a trainer takes.

The column names are TRL's: `text`, `messages`, `prompt`, `completion`, `chosen`, `rejected`, `label`. All but `label`
and `text` may be text or lists of messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.data.example import Example
from posttrain.data.formats import ACCEPTS, PAIRS
from posttrain.data.prompts import common_prefix_length
from posttrain.data.row import RowError
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset


TRL_COLUMNS = {"text", "messages", "prompt", "completion", "chosen", "rejected", "label"}
# Columns that TRL's trainers take for rows that are already tokenized; they would train on these instead.
TOKEN_COLUMNS = {
    *("input_ids", "attention_mask", "labels", "completion_mask", "assistant_masks", "token_type_ids", "position_ids"),
    *("seq_lengths", "prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "KL_completion_ids"),
    *("chosen_input_ids", "rejected_input_ids", "ref_chosen_logps", "ref_rejected_logps", "ref_logps"),
}
# Columns that a text model cannot read.
MEDIA_COLUMNS = ("images", "image", "videos", "video", "audios", "audio")
# Columns of TRL besides the texts.
EXTRA_TRL_COLUMNS = {"tools", "chat_template_kwargs"}
# Columns of trainers that weight pairs: `posttrain.training.pair_weights`, and `cut_answers` for the last two.
PAIR_FACTS = {"weight", "ended_chosen", "ended_rejected"}
MAX_WEIGHT = 1_000_000
# Columns that job=sample adds to a row.
SCORE_COLUMNS = {"score", "rewards", *(f"{name}_{side}" for name in ("score", "rewards", "ended") for side in PAIRS)}
# Columns that can hold a row's prompt.
PROMPT_COLUMNS = ("prompt", "messages", *PAIRS)


def prompt_of(row: Mapping[str, Any]) -> Any:
    """The prompt of a row, which may be unchecked, or `None`.

    It is the column `prompt`, the turns before the last, or the common beginning of chosen and rejected.
    """
    if "prompt" in row:
        return row["prompt"]
    if "messages" in row:
        return row["messages"][:-1] if isinstance(row["messages"], list) else None
    chosen, rejected = (row.get(side) for side in PAIRS)
    if not isinstance(chosen, (str, list)) or not isinstance(rejected, (str, list)):
        return None
    return chosen[: common_prefix_length(chosen, rejected)]


def choose_columns(columns: list[str], kind: str, name: str = "trl") -> tuple[str, ...]:
    """The first set of columns in `ACCEPTS` for the trainer `kind` that `columns` holds; raises `PosttrainError`.

    `columns` come from rows of the format `name`.
    """
    accepted = ACCEPTS[trainers.of(kind).reads]
    for needed in accepted:
        if set(needed) <= set(columns):
            return needed
    from posttrain.data import missing_columns

    raise PosttrainError(missing_columns.message(columns, kind, name))


def check_prompt(example: Example, kind: str) -> None:
    """Raise `RowError` for two answers without a question, unless the trainer `kind` can learn from them."""
    # A reward model may learn from two answers alone; trainers that sample need a question only.
    needs_prompt = not (trainers.of(kind).samples_completions or trainers.of(kind).scores)
    if example.prompt == "" and "prompt" not in example.used and needs_prompt:
        raise RowError(
            "chosen",
            "shares no beginning with rejected, and there is no prompt: the answers would be learnt without their "
            "question; map its column: 'data.columns={prompt: THEIRS}'",
        )


def check_media(row: Mapping[str, Any]) -> None:
    """Raise `RowError` for images, video and sound."""
    for name in MEDIA_COLUMNS:
        if value := row.get(name):
            from posttrain.data import media

            media.check(value, name)


def extra_columns(columns: Any, used: Any, kind: str | None) -> list[str]:
    """The other columns of a row that are kept: for reward functions, scores and weights."""
    gone = {*used, *TRL_COLUMNS, *MEDIA_COLUMNS}
    if kind is not None and not trainers.of(kind).samples_completions:
        gone |= TOKEN_COLUMNS  # trainers that sample do not look for tokens in the data
    return [name for name in columns if name not in gone]


def with_template_options(rows: Dataset) -> Dataset:
    """Rows with an empty object where `chat_template_kwargs` is null: TRL unpacks it."""
    if "chat_template_kwargs" not in rows.column_names or None not in rows["chat_template_kwargs"]:
        return rows
    filled = lambda row: {"chat_template_kwargs": row["chat_template_kwargs"] or {}}  # noqa: E731
    return rows.map(filled, features=rows.features, desc="Options of the chat template")


def check_weight(row: Mapping[str, Any]) -> None:
    """Raise `RowError` for a pair's weight that is no valid number (see `posttrain.training.pair_weights`)."""
    value = row.get("weight")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value <= MAX_WEIGHT):
        raise RowError(
            "weight",
            f"a pair's weight is a number from 0 to {MAX_WEIGHT:,}, got {value!r:.120} (a column that means something "
            "else gets another name: 'data.columns={OTHER: weight}')",
        )
