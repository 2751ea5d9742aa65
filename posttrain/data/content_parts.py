"""The content of a message in parts: text, reasoning and calls of tools."""

from collections.abc import Mapping
from typing import Any

from posttrain.data.json_values import parse_json_string
from posttrain.data.row import RowError, shortened, text
from posttrain.data.tools import calls as calls_of


def read(value: Any, field: str) -> tuple[str, str | None, tuple[dict[str, Any], ...]]:
    """Text, reasoning and tool calls of a list of parts, or of one; raises `RowError` for a part of another kind."""
    if isinstance(value, Mapping) and "type" in value:
        value = [value]
    if not isinstance(value, list):
        raise RowError(field, f"expected text, got {shortened(value)}")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: tuple[dict[str, Any], ...] = ()
    for index, part in enumerate(value):
        where = f"{field}[{index}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind in ("text", "input_text", "output_text"):
            given = part.get("text", part.get("value"))
            texts.append(text(given, f"{where}.{'value' if 'value' in part and 'text' not in part else 'text'}", True))
        elif kind in ("reasoning", "thinking"):
            thoughts.append(text(part.get("value", part.get(kind, part.get("text"))), f"{where}.value", True))
        elif kind in ("tool_call", "tool_calls"):
            calls += calls_of(parse_json_string(part.get("value"), f"{where}.value"), f"{where}.value")
        else:
            raise RowError(where, f"expected a part of type text, got {shortened(kind if kind is not None else part)}")
    return "".join(texts), "".join(thoughts) or None, calls
