"""Rows as token sequences with their loss mask, by the trainer's own preparation and collation.

Sequences and masks come from TRL's `_prepare_dataset` and data collators, not from a second implementation.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.config import options, trainers
from posttrain.config.schema import Run
from posttrain.models.tokens import token_ids

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

SEED, LONGEST = 0, 64
# Options that preparation reads, besides max_length; other options may need the machine that trains.
PREPARATION_OPTIONS = (
    "truncation_mode",
    "dataset_num_proc",
    "assistant_only_loss",
    "completion_only_loss",
    "dataset_text_field",
)
# Columns of prepared rows that the collators read.
PREPARED_COLUMNS = ("input_ids", "labels", "prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "label")


@dataclass(frozen=True)
class Sequence:
    """One sequence of a row; `trained` says for each token whether it carries the loss.

    A reward model has no such mask: its loss is on the score at the last token.
    """

    row: int
    side: str
    ids: list[int]
    trained: list[bool]

    def cut(self, limit: int | None, mode: str = "keep_start") -> Sequence:
        """The sequence after truncation to `limit` tokens."""
        part = slice(None) if limit is None else slice(None, limit) if mode == "keep_start" else slice(-limit, None)
        return Sequence(self.row, self.side, self.ids[part], self.trained[part])


def choose(count: int, sample: int | None, lengths: np.ndarray) -> tuple[list[int], list[int]]:
    """Rows to tokenize: a uniform sample (None: all rows), and the longest of the others by characters."""
    if sample is None or sample >= count:
        return list(range(count)), []
    uniform = np.sort(np.random.default_rng(SEED).permutation(count)[:sample])
    others = np.setdiff1d(np.arange(count), uniform)
    return uniform.tolist(), others[np.argsort(-lengths[others], kind="stable")[:LONGEST]].tolist()


def of(run: Run, tokenizer: PreTrainedTokenizerBase, rows: Dataset, indices: list[int]) -> list[list[Sequence]]:
    """The sequences of each of `indices`, without truncation or dropped rows."""
    if not indices:
        return []
    chosen = rows.select(indices)
    kind = trainers.of(run.trainer.kind)
    if kind.samples_completions:
        # Training samples the completion, so the sequence is the prompt with the generation prompt.
        options = run.trainer.args.get("chat_template_kwargs")
        settings: Any = chosen if trainers.shows_row_tools(run.trainer) else [None] * len(chosen)
        rows_of = zip(chosen["prompt"], settings, strict=True)
        found = [token_ids(tokenizer, prompt, True, row, options) for prompt, row in rows_of]
        return [[Sequence(i, "prompt", one, [False] * len(one))] for i, one in zip(indices, found, strict=True)]
    if kind.reads == "text" and "messages" in chosen.column_names:
        from posttrain.data import loss_mask

        only = run.trainer.args.get("assistant_only_loss")
        chosen = loss_mask.tokenize_rows(chosen, tokenizer, loss_mask.training_template(tokenizer, only), only is False)
    if kind.reads == "messages":  # such trainers learn the last turn only
        chosen = chosen.map(lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]})
        chosen = chosen.remove_columns("messages")
    prepared = prepare(run, tokenizer, chosen, None)
    prepared = prepared.select_columns([name for name in prepared.column_names if name in PREPARED_COLUMNS])
    prepares = _prepares(kind)
    return [_sequences(prepares, index, row) for index, row in zip(indices, prepared, strict=True)]


def prepare(run: Run, tokenizer: PreTrainedTokenizerBase, rows: Dataset, limit: int | None) -> Dataset:
    """Rows as the trainer prepares them with `max_length=limit`, without packing and shuffling."""
    prepares = _prepares(trainers.of(run.trainer.kind))
    kind = trainers.of(prepares)
    library = importlib.import_module("trl")
    known = options.options_of(kind.config)
    settings = {
        name: value for name, value in run.trainer.args.items() if name in PREPARATION_OPTIONS and name in known
    }
    settings |= {"max_length": limit, "report_to": "none", "use_cpu": True, "bf16": False, "fp16": False}
    config = getattr(library, kind.config.rpartition(".")[2])(output_dir="unused", **settings)
    # Only the attributes that preparation reads, since a real trainer would load the model.
    trainer = SimpleNamespace(_tokenizer=tokenizer, calculate_KL=False, desirable_weight=1.0, undesirable_weight=1.0)
    method = getattr(library, kind.lineage[0])._prepare_dataset
    if prepares == "sft":
        chosen = config.completion_only_loss
        trainer.completion_only_loss = "completion" in rows.column_names if chosen is None else chosen
        trainer.chat_template = _training_template(tokenizer) if config.assistant_only_loss else None
        return method(trainer, rows, tokenizer, config, False, None, "train")
    return method(trainer, rows, tokenizer, config, "train")


def _prepares(kind: trainers.Kind) -> str:
    """The stable trainer whose preparation is used for `kind`: the same, or one for the same kind of rows."""
    return "reward" if kind.scores else {"pairs": "dpo", "triples": "dpo", "labels": "kto"}.get(kind.reads, "sft")


def _training_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """TRL's own template with marks around what the assistant says, where the model's has none."""
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    return None if has_generation_markers(tokenizer.chat_template) else get_training_chat_template(tokenizer)


def _sequences(kind: str, index: int, row: dict[str, Any]) -> list[Sequence]:
    """The sequences of a prepared row, with the mask of the trainer's own collator."""
    if kind == "reward":
        return [
            Sequence(index, side, found, [n == len(found) - 1 for n in range(len(found))])
            for side in ("chosen", "rejected")
            for found in [row[f"{side}_ids"]]
        ]
    if kind == "sft":
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        batch = DataCollatorForLanguageModeling(pad_token_id=0)([{k: row[k] for k in ("input_ids", "labels")}])
        return [_sequence(index, "sequence", batch["input_ids"][0], batch["labels"][0] != -100, len(row["input_ids"]))]
    if kind == "dpo":
        from trl.trainer.dpo_trainer import DataCollatorForPreference

        batch = DataCollatorForPreference(pad_token_id=0)([row])
        return [
            _sequence(index, side, batch["input_ids"][n], batch["completion_mask"][n] == 1, length)
            for n, side in enumerate(("chosen", "rejected"))
            for length in [len(row["prompt_ids"]) + len(row[f"{side}_ids"])]
        ]
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    batch = DataCollatorForUnpairedPreference(pad_token_id=0)([row])
    length = len(row["prompt_ids"]) + len(row["completion_ids"])
    return [_sequence(index, "completion", batch["input_ids"][0], batch["completion_mask"][0] == 1, length)]


def _sequence(index: int, side: str, found: Any, mask: Any, length: int) -> Sequence:
    return Sequence(index, side, found[:length].tolist(), mask[:length].tolist())
