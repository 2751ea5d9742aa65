"""The one form that a row of data has between its file and a trainer: a checked `Example`.

Every format of `posttrain.data.formats` makes it, and `posttrain.data.columns` makes a trainer's columns of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

# The keys under which a message has its reasoning.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Message:
    """One turn. `calls` are OpenAI's tool calls with arguments as objects; `learn` is `None` where nothing is said."""

    role: str
    content: str = ""
    reasoning: str | None = None
    calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None
    call_id: str | None = None
    learn: bool | None = None

    def as_dict(self, reasoning: str = "reasoning_content") -> dict[str, Any]:
        """As chat templates take it; `reasoning` is the key of the template, or `inline`: a <think> block."""
        content = self.content
        if self.reasoning is not None and reasoning == "inline":
            content = f"<think>\n{self.reasoning.strip()}\n</think>\n\n{content}"
        made: dict[str, Any] = {"role": self.role, "content": content}
        if self.reasoning is not None and reasoning != "inline":
            made[reasoning] = self.reasoning
        if self.calls:
            made["tool_calls"] = list(self.calls)
        if self.name is not None:
            made["name"] = self.name
        if self.call_id is not None:
            made["tool_call_id"] = self.call_id
        if self.learn is not None:
            made["weight"] = int(self.learn)
        return made

    @property
    def has_content(self) -> bool:
        return bool(self.content.strip() or self.calls or (self.reasoning or "").strip())


Turns: TypeAlias = list[Message]
# What is said: plain text, which is rendered by no template, or turns of a conversation.
TextOrTurns: TypeAlias = str | list[Message]


@dataclass(frozen=True)
class Example:
    """A row as a trainer can be given it; what it does not have is `None`.

    Either `text`, or `messages`, or a `prompt` with nothing, `completion` (and `label` or `rating`), `chosen` and
    `rejected`, or `completions` with `scores`. Prompt and answers are split, and all text or all turns. `used` are the
    columns of the row that it was made of.
    """

    prompt: TextOrTurns | None = None
    completion: TextOrTurns | None = None
    chosen: TextOrTurns | None = None
    rejected: TextOrTurns | None = None
    messages: Turns | None = None
    text: str | None = None
    label: bool | None = None
    completions: list[TextOrTurns] | None = None
    scores: list[float] | None = None
    rating: float | bool | None = None
    tools: list[dict[str, Any]] | None = None
    template_options: dict[str, Any] | None = None
    used: tuple[str, ...] = ()

    def columns(self, reasoning: str = "reasoning_content") -> dict[str, Any]:
        """In TRL's columns, and `completions` + `scores` or `rating` where the trainer decides what they become."""

        def plain(value: Any) -> Any:
            return value if isinstance(value, str) else [message.as_dict(reasoning) for message in value]

        names = ("messages", "prompt", "completion", "chosen", "rejected")
        made = {name: plain(value) for name in names if (value := getattr(self, name)) is not None}
        if self.completions is not None:
            made["completions"] = [plain(one) for one in self.completions]
        for name in ("text", "scores", "rating", "label"):
            if (value := getattr(self, name)) is not None:
                made[name] = value
        if self.tools:
            made["tools"] = json.dumps(self.tools, ensure_ascii=False)  # as TRL takes it: schemas are of every shape
        if self.template_options is not None:
            made["chat_template_kwargs"] = self.template_options
        return made

    @property
    def turns(self) -> Turns | None:
        """The turns that open the row; `None` for text."""
        opening = self.messages if self.messages is not None else self.prompt
        return opening if isinstance(opening, list) else None

    def conversational(self) -> Example:
        """Text as turns: an instruct model expects its chat template, which is applied to conversations only."""
        if self.prompt is None:
            return self
        asked = as_turns(self.prompt, "user")
        answers: dict[str, Any] = {
            name: as_turns(value, "assistant")
            for name in ("completion", "chosen", "rejected")
            if (value := getattr(self, name)) is not None
        }
        several: Any = self.completions and [as_turns(one, "assistant") for one in self.completions]
        return replace(self, prompt=asked, completions=several, **answers)


def as_turns(said: TextOrTurns, role: str) -> Turns:
    """Text as one turn, stripped: the space that joins a completion to its prompt would otherwise open it."""
    return [Message(role, said.strip())] if isinstance(said, str) else said
