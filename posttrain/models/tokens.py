"""Text or conversation to token ids, as TRL's trainers tokenize it."""

from __future__ import annotations

from typing import Any


def token_ids(tokenizer: Any, text: str | list[dict[str, Any]], generation: bool = False) -> list[int]:
    """Token ids of a string, or of a conversation rendered by the chat template; `generation` opens a reply."""
    if isinstance(text, str):
        return tokenizer(text)["input_ids"]
    rendered = tokenizer.apply_chat_template(text, add_generation_prompt=generation, tokenize=True, return_dict=True)
    return rendered["input_ids"]


def as_text(prompt: str | list[dict[str, Any]]) -> str:
    """A prompt for a person to read: each turn of a conversation with its role."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
