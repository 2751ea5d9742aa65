"""A library's error about options of a trainer, with the config key of the option that causes it."""

import re
from collections.abc import Callable
from typing import Any

from posttrain.config import options, trainers


def explain(error: Exception, kind: str, args: dict[str, Any], build: Callable[[dict[str, Any]], None]) -> str:
    """The error's first three lines, each with its option; `build` makes the objects that the trainer of `kind` makes.

    If a message names no option, the cause is the option without which `build` succeeds, if there is one.
    """
    lines = [line for line in str(error).splitlines() if line.strip()][:3] or [type(error).__name__]
    named = [_named(line, kind, args) for line in lines]
    if not any(named) and (cause := _cause(args, build)):
        named = [f"{cause}={args[cause]}"] * len(lines)
    keys = [f"trainer.args.{name}" if name else f"trainer={kind}" for name in named]
    return "\n".join(f"{key}: {line}" for key, line in zip(keys, lines, strict=True))


def _named(line: str, kind: str, args: dict[str, Any]) -> str | None:
    """The option that a message names first, directly or by a key in its value, with its value if it is given."""
    known = options.options_of(trainers.of(kind).config)
    words = re.findall(r"\w+", line)
    inside = {key: name for name, value in args.items() if isinstance(value, dict) for key in value}
    for name in [*(word for word in words if word in known), *(inside[word] for word in words if word in inside)]:
        return f"{name}={args[name]}" if name in args else name
    return None


def _cause(args: dict[str, Any], build: Callable[[dict[str, Any]], None]) -> str | None:
    for name in args:
        try:
            build({key: value for key, value in args.items() if key != name})
        except Exception:
            continue
        return name
    return None
