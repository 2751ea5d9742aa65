"""From the columns a data set has to the columns a trainer needs, where the step loses nothing.

The column names are TRL's: `text`, `messages`, `prompt`, `completion`, `chosen`, `rejected`, `label`. All but `label`
may be text or lists of messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset

PAIRS = ("chosen", "rejected")
# trainer -> the sets of columns it can be given, best first; the last ones are converted.
ACCEPTS: dict[str, list[tuple[str, ...]]] = {
    "sft": [("messages",), ("prompt", "completion"), ("text",), PAIRS],
    "reward": [PAIRS],
    "dpo": [PAIRS],
    "kto": [("prompt", "completion", "label"), PAIRS],
    "grpo": [("prompt",), PAIRS],
    "rloo": [("prompt",), PAIRS],
}
TRL_COLUMNS = {"text", "messages", "prompt", "completion", "chosen", "rejected", "label"}


def form(columns: list[str], kind: str) -> tuple[str, ...]:
    """The first set of columns in `ACCEPTS[kind]` that `columns` holds; raises `PosttrainError` when none does."""
    for needed in ACCEPTS[kind]:
        if set(needed) <= set(columns):
            return needed
    wanted = " or ".join("+".join(c) for c in ACCEPTS[kind])
    raise PosttrainError(
        f"data.columns: {kind} needs {wanted}, and the data has {', '.join(columns)}; "
        "map them, ours to theirs: 'data.columns={prompt: question, chosen: best, rejected: worst}'"
    )


def rename(dataset: Dataset, columns: dict[str, str]) -> Dataset:
    """Rename columns from `{ours: theirs}`; a column of ours that is in the way is dropped."""
    for ours, theirs in columns.items():
        if theirs not in dataset.column_names:
            raise PosttrainError(
                f"data.columns.{ours}={theirs}: no such column; the data has {', '.join(dataset.column_names)}"
            )
    in_the_way = [ours for ours, theirs in columns.items() if ours != theirs and ours in dataset.column_names]
    dataset = dataset.remove_columns([c for c in in_the_way if c not in columns.values()])
    return dataset.rename_columns({theirs: ours for ours, theirs in columns.items() if ours != theirs})


def adapt(dataset: Dataset, kind: str) -> Dataset:
    """The data as the trainer `kind` takes it; columns that are not TRL's stay, for reward functions."""
    found = form(dataset.column_names, kind)
    if found == PAIRS:
        dataset = _with_prompt(dataset)
        found = ("prompt", *PAIRS)
        if kind == "sft":
            dataset = dataset.rename_column("chosen", "completion")
            found = ("prompt", "completion")
        elif kind == "kto":
            from trl.data_utils import unpair_preference_dataset

            # KTO estimates KL from neighbours' completions, which must not belong to the same prompt: shuffle.
            dataset = unpair_preference_dataset(dataset).shuffle(seed=0)
            found = ("prompt", "completion", "label")
        elif kind in ("grpo", "rloo"):
            found = ("prompt",)
    return dataset.remove_columns([c for c in dataset.column_names if c in TRL_COLUMNS and c not in found])


def _with_prompt(dataset: Dataset) -> Dataset:
    """Pairs with an explicit prompt: the shared first turns, where it is not a column of the right kind."""
    from trl.data_utils import extract_prompt

    first = dataset[0]
    if "prompt" in first and isinstance(first["prompt"], str) and not isinstance(first["chosen"], str):
        # UltraFeedback has the prompt as text beside conversations that begin with it.
        dataset = dataset.remove_columns("prompt")
    if "prompt" not in dataset.column_names:
        dataset = dataset.map(extract_prompt, desc="Extracting prompts")
    return dataset


def check_rows(dataset: Dataset, split: str, path: str) -> None:
    """Raise `PosttrainError` for the first row whose TRL columns are empty or of the wrong kind."""
    columns = [c for c in dataset.column_names if c in TRL_COLUMNS]
    for index, row in enumerate(dataset.select_columns(columns)):
        for column in columns:
            if problem := _problem(column, row[column]):
                raise PosttrainError(f"data.path={path}: row {index} of {split}, column {column}: {problem}")


def _problem(column: str, value: Any) -> str | None:
    if column == "label":
        return None if isinstance(value, bool) else f"expected true or false, got {value!r}"
    if isinstance(value, str):
        return None if value or column == "prompt" else "is empty"
    if not isinstance(value, list):
        return f"expected text or a list of messages, got {value!r}"
    if not value:
        return "is an empty conversation"
    for message in value:
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            return f"expected messages with role and content, got {message!r:.120}"
    return None
