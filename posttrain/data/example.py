"""`Example`: the checked form of a row between its file and a trainer.

Every format of `posttrain.data.formats` is converted to it, and `posttrain.data.columns` to a trainer's columns.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.data.turns import TextOrTurns, Turns

# The keys under which a message has its reasoning.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
COLUMNS = (
    *("messages", "prompt", "completion", "chosen", "rejected", "completions"),
    *("text", "scores", "rating", "label"),
)


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
            if isinstance(value, list):
                return [plain(one) for one in value]
            return value.as_dict(reasoning) if hasattr(value, "as_dict") else value

        made = {name: plain(value) for name in COLUMNS if (value := getattr(self, name)) is not None}
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
