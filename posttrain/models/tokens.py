"""Text or conversation to token ids, as TRL's trainers tokenize it."""

import json
from collections.abc import Mapping
from typing import Any


def token_ids(
    tokenizer: Any,
    text: str | list[dict[str, Any]],
    generation: bool = False,
    row: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a string, or of a conversation rendered by the chat template; `generation` opens a reply.

    The template gets the `tools` (JSON) and `chat_template_kwargs` of `row`, and `options`; the row's values win.
    """
    if isinstance(text, str):
        return tokenizer(text)["input_ids"]
    row = row or {}
    given = {**(options or {}), **(row.get("chat_template_kwargs") or {})}
    tools = json.loads(row["tools"]) if isinstance(row.get("tools"), str) else None
    rendered = tokenizer.apply_chat_template(
        text, tools=tools, add_generation_prompt=generation, tokenize=True, return_dict=True, **given
    )
    return rendered["input_ids"]


def as_text(prompt: str | list[dict[str, Any]]) -> str:
    """A prompt as readable text: each turn of a conversation with its role."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
