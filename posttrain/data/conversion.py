"""Rows of one kind of trainer as those of another: pairs as answers or prompts, conversations as prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.data.chat_text import without_learn_keys
from posttrain.data.formats import PAIRS
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset


def convert(dataset: Dataset, kind: str, found: tuple[str, ...]) -> tuple[Dataset, tuple[str, ...]]:
    """Rows with the columns `found`, converted for the trainer `kind`; and their new columns.

    Raises `PosttrainError` for weights that the trainer would ignore.
    """
    trainer, pairs = trainers.of(kind), {*PAIRS} <= {*found}
    reads = trainer.reads
    # A weight belongs to a pair. Where sft and kto make rows from its answers, the weight does not apply.
    if not ((pairs and reads != "pairs") or trainer.samples_completions or trainer.weights_pairs):
        dataset = _drop_equal_weights(dataset, kind)
    if pairs and reads in ("text", "messages"):
        dataset = dataset.rename_column("chosen", "completion")
        found = ("prompt", "completion")
    elif pairs and reads == "labels":
        from trl.data_utils import unpair_preference_dataset

        dataset = unpair_preference_dataset(dataset)
        found = ("prompt", "completion", "label")
    elif pairs and reads == "prompts":
        found = ("prompt",)
    elif found == ("messages",) and reads == "prompts":
        dataset = turns_to_answer(dataset)
        found = ("prompt",)
    if reads == "messages" and found == ("prompt", "completion"):
        if isinstance(dataset[0]["prompt"], str):
            raise PosttrainError(f"data.path: {kind} learns from conversations; set data.conversational=true")
        joined = lambda row: {"messages": [*row["prompt"], *row["completion"]]}  # noqa: E731
        dataset = dataset.map(joined, desc="Joining prompts and completions")
        found = ("messages",)
    if reads == "labels":
        # TRL reads KTO's rows in order, and estimates KL from neighbours' completions: neighbours must belong to
        # different prompts, and a batch must hold both labels.
        dataset = dataset.shuffle(seed=0)
    return dataset, found


def _drop_equal_weights(dataset: Dataset, kind: str) -> Dataset:
    """Rows without `weight`, for a trainer that weights all rows equally; raises `PosttrainError` if weights differ."""
    if "weight" not in dataset.column_names:
        return dataset
    weights = [1.0 if weight is None else weight for weight in dataset["weight"]]
    if any(weight != weights[0] for weight in weights):
        raise PosttrainError(
            f"data.path: column weight: {kind} counts all rows alike; set data.pairs=one where it comes from several "
            "answers to a prompt, or give the column another name: 'data.columns={OTHER: weight}'"
        )
    return dataset.remove_columns("weight")


def turns_to_answer(rows: Dataset) -> Dataset:
    """Rows of messages as rows of prompts: the messages without the assistant's turns at the end."""

    def asked(row: dict[str, Any]) -> dict[str, Any]:
        turns = without_learn_keys(row["messages"])
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        return {"prompt": turns}

    return rows.map(asked, desc="Taking prompts")
