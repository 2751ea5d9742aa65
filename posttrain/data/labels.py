"""Which tokens of a conversation carry the loss: those of assistant messages whose `weight` is not 0."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase


def label(rows: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase) -> Any:
    """`rows` with `messages` (and `tools`) as `input_ids` and `labels`, which SFTTrainer takes as they are."""
    template = _template(tokenizer)

    def made(row: dict[str, Any]) -> dict[str, list[int]]:
        return labelled(tokenizer, row["messages"], row.get("tools"), template)

    return rows.map(made, remove_columns=rows.column_names)


def labelled(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: Any = None, template: str | None = None
) -> dict[str, list[int]]:
    """`input_ids` of the conversation, and `labels`: the same, or -100 for tokens that carry no loss.

    A message's tokens are those that the conversation up to and with it has beyond the prompt that generates it, so
    that the tokens before which the model decides are right for every template. Raises `PosttrainError` where the
    template writes earlier turns otherwise once later ones follow.
    """
    if isinstance(tools, str):
        tools = json.loads(tools)
    plain = [{key: value for key, value in message.items() if key != "weight"} for message in messages]

    def ids(turns: int, generation: bool = False) -> list[int]:
        found: Any = tokenizer.apply_chat_template(
            plain[:turns],
            tools=tools or None,
            add_generation_prompt=generation,
            chat_template=template,
            tokenize=True,
            return_dict=True,
        )
        return list(found["input_ids"])

    whole = ids(len(plain))
    labels = [-100] * len(whole)
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and message.get("weight") != 0:
            before, through = ids(number, generation=True), ids(number + 1)
            if through[: len(before)] != before or whole[: len(through)] != through:
                raise PosttrainError(
                    "data.format=openai: the chat template writes a conversation's earlier turns otherwise once later "
                    "ones follow, so a message cannot be told from the others; set model.chat_template=FILE.jinja with "
                    "one that does not"
                )
            labels[len(before) : len(through)] = through[len(before) :]
    return {"input_ids": whole, "labels": labels}


def _template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """TRL's variant of a known family's template that leaves earlier turns as they are; else the tokenizer's own."""
    from trl.chat_template_utils import get_training_chat_template, is_chat_template_prefix_preserving

    if is_chat_template_prefix_preserving(tokenizer):
        return None
    try:
        return get_training_chat_template(tokenizer)
    except ValueError:
        return None
