"""Completions of one prompt, with their scores and rewards, that people can compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """A completion (text or messages), its score, and its rewards by name; `None` and `{}` where there are none."""

    content: Any
    score: float | None = None
    rewards: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """All candidates for one prompt; `preferred` is an index of `candidates`."""

    prompt: Any
    candidates: tuple[Candidate, ...]
    extra: Mapping[str, Any]
    preferred: int | None = None


def choose(group: Group, indices: Sequence[int]) -> Group:
    """The group with only the candidates at `indices`."""
    preferred = indices.index(group.preferred) if group.preferred in indices else None
    return replace(group, candidates=tuple(group.candidates[i] for i in indices), preferred=preferred)


def key(value: Any) -> str:
    """A digest of text or messages: 16 hex digits, the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def messages(value: Any) -> Iterable[tuple[str | None, str]]:
    """(role, text) of each turn; the role of plain text is None. Parts that are not text are shown as JSON."""
    if isinstance(value, str):
        yield None, value
        return
    for message in value:
        content = message["content"]
        if isinstance(content, list):
            parts = [p.get("text") or json.dumps(p, default=str) if isinstance(p, dict) else str(p) for p in content]
            content = "\n\n".join(parts)
        calls = message.get("tool_calls")
        called = (
            "\n\n```json\n" + json.dumps(calls, indent=1, ensure_ascii=False, default=str) + "\n```" if calls else ""
        )
        yield str(message["role"]), f"{content or ''}{called}"


def as_text(value: Any) -> str:
    """The texts of all turns, joined."""
    return "\n\n".join(text for _, text in messages(value))
