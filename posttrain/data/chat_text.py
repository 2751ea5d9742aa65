"""Conversations as the text that a chat template makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from posttrain.data.row import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Replaces a message's content: two characters of the private use area, a pair that does not occur in texts.
PLACEHOLDER = "\ue0f0\ue0f1"

Messages = list[dict[str, Any]]
# (messages, whether the generation prompt follows) -> text
Render = Callable[[Messages, bool], str]


def without_learn_keys(messages: Messages) -> Messages:
    """Messages without the keys that say what is learnt, which no template reads."""
    return [{key: value for key, value in turn.items() if key != "weight"} for turn in messages]


def renderer(
    tokenizer: PreTrainedTokenizerBase,
    tools: Any = None,
    options: dict[str, Any] | None = None,
    template: str | None = None,
) -> Render:
    """A function that renders messages with these tools; an error of the template becomes a `RowError`."""
    from jinja2 import TemplateError

    given = json.loads(tools) if isinstance(tools, str) else tools

    def render(turns: Messages, generation: bool) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(
                    without_learn_keys(turns),
                    tools=given or None,
                    add_generation_prompt=generation,
                    chat_template=template,
                    tokenize=False,
                    **(options or {}),
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise RowError("", f"the chat template refuses it: {str(error) or type(error).__name__}") from None

    return render
