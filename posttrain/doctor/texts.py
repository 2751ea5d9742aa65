"""The text of rows, whatever columns and message forms they have."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from posttrain.data.columns import EXTRA_TRL_COLUMNS
from posttrain.data.example import REASONING_KEYS

if TYPE_CHECKING:
    from datasets import Dataset

ANSWER_COLUMNS = ("chosen", "rejected", "completion", "text")


@dataclass(frozen=True)
class Texts:
    """One split, a list per column; system turns are separate from prompts, since rows share them.

    `settings`: row -> its tools and options of the chat template as JSON, if it has any; rows share them too.
    """

    split: str
    system: list[str]
    prompts: list[str]
    answers: dict[str, list[str]]
    labels: list[bool] | None = None
    settings: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def paired(self) -> bool:
        return {"chosen", "rejected"} <= self.answers.keys()

    @property
    def asked(self) -> list[str]:
        """The prompts, or for rows without prompts their texts."""
        return self.prompts if any(self.prompts) else next(iter(self.answers.values()), self.prompts)

    def row(self, index: int) -> str:
        """Prompt and answers of a row."""
        return "\n".join([self.prompts[index], *(column[index] for column in self.answers.values())])

    def everything(self, index: int) -> str:
        """A row with its system turns, tools and options of the chat template."""
        return "\n".join(filter(None, (self.system[index], self.settings.get(index), self.row(index))))

    def whole(self) -> list[str]:
        return [self.row(index) for index in range(len(self))]


def of(rows: Dataset, split: str) -> Texts:
    """The texts of rows in TRL's columns: of `messages`, the last turn is the answer."""
    columns = {
        name: list(rows[name]) for name in ("prompt", "messages", "label", *ANSWER_COLUMNS) if name in rows.column_names
    }
    if "messages" in columns:
        conversations = columns.pop("messages")
        columns["prompt"] = [turns[:-1] for turns in conversations]
        columns["completion"] = [turns[-1:] for turns in conversations]
    given = sorted(EXTRA_TRL_COLUMNS & set(rows.column_names))
    prompts = columns.get("prompt", [""] * len(rows))
    return Texts(
        split,
        [_text(prompt, system=True) if not isinstance(prompt, str) else "" for prompt in prompts],
        [_text(prompt) for prompt in prompts],
        {name: [_text(value) for value in columns[name]] for name in ANSWER_COLUMNS if name in columns},
        columns.get("label"),
        {i: text for i, row in enumerate(rows.select_columns(given)) if (text := _settings(row))} if given else {},
    )


def _settings(row: dict[str, Any]) -> str:
    values = filter(None, row.values())
    return "\n".join(v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str) for v in values)


def _text(value: Any, system: bool = False) -> str:
    """Plain text as it is; of a conversation the system turns (`system`), or all others."""
    if isinstance(value, str):
        return value
    return "\n".join(_turn_text(turn) for turn in value if (turn["role"] == "system") == system)


def _turn_text(turn: dict[str, Any]) -> str:
    """A turn's reasoning, its text, which may be in several parts, and its tool calls as JSON."""
    thoughts = [turn[key] for key in REASONING_KEYS if turn.get(key)]
    content = turn.get("content") or ""
    if isinstance(content, list):
        content = "\n".join(part if isinstance(part, str) else part.get("text") or "" for part in content)
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in turn.get("tool_calls") or []]
    return "\n".join([*thoughts, *([content] if content or not (thoughts or calls) else []), *calls])
