"""`Example`: the checked form of a row between its file and a trainer.

Every format of `posttrain.data.formats` is converted to it, and `posttrain.data.columns` to a trainer's columns.
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
# Plain text, which no template renders, or the turns of a conversation.
TextOrTurns: TypeAlias = str | list[Message]


@dataclass(frozen=True)
class Example:
    """A checked row; fields that it does not have are `None`.

    Either `text`, or `messages`, or a `prompt` with nothing, `completion` (and `label` or `rating`), `chosen` and
    `rejected`, or `completions` with `scores`. Prompt and answers are split, and all text or all turns. `used` are the
    columns of the raw row that it was made from.
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
        """The row in TRL's columns; scored and rated answers stay as `completions` and `scores`, or `rating`."""

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
        """The first turns of the row (messages or prompt); `None` for text."""
        opening = self.messages if self.messages is not None else self.prompt
        return opening if isinstance(opening, list) else None

    def conversational(self) -> Example:
        """The row with text as turns: an instruct model needs its chat template, which renders conversations only."""
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
    """Text as one turn, stripped of the space that joined a completion to its prompt."""
    return [Message(role, said.strip())] if isinstance(said, str) else said
