"""Conversations as the text that a chat template makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from posttrain.data.row import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Replaces a message's content: two characters of the private use area, which no text has side by side.
PLACEHOLDER = "\ue0f0\ue0f1"

Messages = list[dict[str, Any]]
# Messages, and whether a reply is opened, as text.
Render = Callable[[Messages, bool], str]


def without_learn_keys(messages: Messages) -> Messages:
    """Messages without the marks that say what is learnt, which no template knows."""
    return [{key: value for key, value in turn.items() if key != "weight"} for turn in messages]


def renderer(
    tokenizer: PreTrainedTokenizerBase,
    tools: Any = None,
    options: dict[str, Any] | None = None,
    template: str | None = None,
) -> Render:
    """What renders messages with these tools; a template's complaint becomes a `RowError` in its own words."""
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
