"""Tools in data: their schemas, and the calls of them."""

from collections.abc import Mapping
from typing import Any

from posttrain.data.json_values import parse_json_string
from posttrain.data.row import RowError, shortened


def schemas(value: Any, field: str = "tools") -> list[dict[str, Any]] | None:
    """Schemas of tools, given as a list or its JSON; bare functions get OpenAI's wrapping."""
    given = parse_json_string(value, field) if value != "" else None
    if not given:
        return None
    if not isinstance(given, list):
        raise RowError(field, f"expected a list of tools, got {shortened(given)}")
    made = []
    for index, one in enumerate(given):
        one = parse_json_string(one, f"{field}[{index}]")
        function = one.get("function", one) if isinstance(one, Mapping) else None
        if not isinstance(function, Mapping) or not _named(function):
            raise RowError(f"{field}[{index}]", f"expected a tool with function.name, got {shortened(one)}")
        made.append(dict(one) if "function" in one else {"type": "function", "function": dict(one)})
    return made


def calls(given: Any, field: str) -> tuple[dict[str, Any], ...]:
    """Tool calls, one or several, in OpenAI's form or as a bare `name` and `arguments`."""
    made = []
    single = not isinstance(given, list)
    for index, call in enumerate([given] if single else given):
        where = field if single else f"{field}[{index}]"
        function = call.get("function", call) if isinstance(call, Mapping) else None
        inside = f"{where}.function" if isinstance(call, Mapping) and "function" in call else where
        if not isinstance(function, Mapping) or not _named(function):
            raise RowError(where, f"expected a call with function.name, got {shortened(call)}")
        arguments = function.get("arguments", function.get("parameters"))
        arguments = {} if arguments in (None, "") else parse_json_string(arguments, f"{inside}.arguments")
        if not isinstance(arguments, dict):
            raise RowError(f"{inside}.arguments", f"expected an object, got {shortened(arguments)}")
        known = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        made.append({**known, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return tuple(made)


def _named(function: Mapping[str, Any]) -> bool:
    return isinstance(name := function.get("name"), str) and bool(name.strip())
