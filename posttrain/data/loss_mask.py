"""Which tokens of a conversation carry the loss in SFT: those of assistant messages that are not marked otherwise.

Of a message, the model learns what it would generate: from the end of the generation prompt to the end of its turn.
That span is located in the rendered text of the whole row, and then in its tokens. A token that crosses a boundary
belongs to the part behind it, as in TRL (`trl.data_utils.common_prefix_length`). With a template that TRL marks for
training, the labels are those of `assistant_only_loss`.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any

from posttrain.data.chat_text import PLACEHOLDER, Messages, Render, renderer, without_learn_keys
from posttrain.data.prompts import common_prefix_length
from posttrain.data.row import RowError
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase


def tokenize_rows(
    rows: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None = None,
    every_turn: bool = False,
) -> Any:
    """`rows` with `messages` (and `tools`) as `input_ids` and `labels`, which SFTTrainer takes as they are."""

    def made(row: dict[str, Any]) -> dict[str, list[int]]:
        options = row.get("chat_template_kwargs")
        return tokenize_conversation(tokenizer, row["messages"], row.get("tools"), template, options, every_turn)

    return rows.map(made, remove_columns=rows.column_names)


def tokenize_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    tools: Any = None,
    template: str | None = None,
    options: dict[str, Any] | None = None,
    every_turn: bool = False,
) -> dict[str, list[int]]:
    """`input_ids` of the conversation, and `labels`: the same, or -100 for tokens that carry no loss.

    `every_turn` learns all turns but messages of weight 0. Raises `PosttrainError` where a message cannot be located
    in the rendered text.
    """
    from trl.chat_template_utils import has_generation_markers

    if not every_turn and has_generation_markers(template or tokenizer.chat_template):
        found = _by_marks(tokenizer, messages, tools, template, options)
        if found is not None:
            return found
    try:
        whole, spans = assistant_spans(messages, renderer(tokenizer, tools, options, template))
    except RowError as row_error:
        raise PosttrainError(f"{row_error.field}: {row_error.reason}") from None
    ids, offsets = _tokens(tokenizer, whole)
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    labels = list(ids) if every_turn else [-100] * len(ids)
    for number, (start, end) in spans.items():
        left_out = messages[number].get("weight") == 0
        if left_out == every_turn:  # the span is not as the rest
            first, last = min(bisect_right(ends, start), bisect_left(starts, start)), bisect_left(starts, end)
            labels[first:last] = [-100] * (last - first) if left_out else ids[first:last]
    return {"input_ids": ids, "labels": labels}


def _by_marks(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, tools: Any, template: str | None, options: Any
) -> dict[str, list[int]] | None:
    """Ids and labels as TRL's `assistant_only_loss` makes them; `None` where its marks cannot be told by message."""
    found: Any = tokenizer.apply_chat_template(
        without_learn_keys(messages),
        tools=json.loads(tools) if isinstance(tools, str) else tools,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **(options or {}),
    )
    ids, mask = list(found["input_ids"]), list(found["assistant_masks"])
    starts = [n for n, one in enumerate(mask) if one and not (n and mask[n - 1])]
    weights = [message.get("weight") for message in messages if message["role"] == "assistant"]
    if 0 in weights:
        if len(starts) != len(weights):
            return None
        for start, weight in zip(starts, weights, strict=True):
            end = start
            while weight == 0 and end < len(mask) and mask[end]:
                mask[end], end = 0, end + 1
    return {"input_ids": ids, "labels": [one if keep else -100 for one, keep in zip(ids, mask, strict=True)]}


def assistant_spans(
    messages: Messages, render: Render, whole: str | None = None
) -> tuple[str, dict[int, tuple[int, int]]]:
    """The rendered conversation, and message number -> (start, end) in it for each assistant message."""
    whole = render(messages, False) if whole is None else whole
    spans = {}
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        found = _as_prefix(messages, number, whole, render) or _by_mark(messages, number, whole, render)
        if found is None:
            raise RowError(
                f"messages[{number}]",
                "the chat template writes it so that it cannot be located in the text; set "
                "model.chat_template=FILE.jinja with one that does not",
            )
        spans[number] = found
    return whole, spans


def _as_prefix(messages: Messages, number: int, whole: str, render: Render) -> tuple[int, int] | None:
    """The message's span, if the conversation up to it renders as a prefix of the whole, as in most templates."""
    if not number:
        return None
    try:
        before = render(messages[:number], True)
        through = whole if number == len(messages) - 1 else render(messages[: number + 1], False)
    except RowError:
        return None
    if through != before and through.startswith(before) and whole.startswith(through):
        return len(before), len(through)
    return None


def _by_mark(messages: Messages, number: int, whole: str, render: Render) -> tuple[int, int] | None:
    """The message's span in a template that renders a turn differently once others follow: the text that changes when
    a placeholder replaces its content."""
    marked = {"role": "assistant", "content": PLACEHOLDER}
    try:
        head, found, tail = render([*messages[:number], marked, *messages[number + 1 :]], False).partition(PLACEHOLDER)
        last = render([*messages[:number], marked], False).partition(PLACEHOLDER)[2]
        opening = _generation_prompt(messages[:number], render) if number else ""
    except RowError:
        return None
    if not found or not whole.endswith(tail):
        return None
    same = common_prefix_length(head, whole)
    at = whole.rfind(opening, 0, same) if opening else -1
    start = at + len(opening) if at >= 0 else same
    end = len(whole) - len(tail) + common_prefix_length(last, tail)
    return (start, end) if start < end else None


def _generation_prompt(before: Messages, render: Render) -> str:
    """The text that the template puts before a reply."""
    closed, opened = render(before, False), render(before, True)
    return opened[len(closed) :] if opened.startswith(closed) else ""


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids, and the span of characters of each."""
    if tokenizer.is_fast:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(found["input_ids"]), list(found["offset_mapping"])
    ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    # A slow tokenizer has no offsets: a token ends where the text decoded up to it ends.
    ends = [len(tokenizer.decode(ids[: n + 1], clean_up_tokenization_spaces=False)) for n in range(len(ids))]
    return ids, list(zip([0, *ends], ends, strict=False))


def training_template(tokenizer: PreTrainedTokenizerBase, only_assistant: Any) -> str | None:
    """The template that `assistant_only_loss=true` trains with in TRL; `None` for the tokenizer's own."""
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    if only_assistant is not True or has_generation_markers(tokenizer.chat_template):
        return None
    try:
        return get_training_chat_template(tokenizer)
    except ValueError:
        return None
