"""Checks of choices, and of where models are; imports nothing heavy."""

import os
import re
from collections.abc import Iterator

from posttrain.config.schema import Run

EMBEDDED = ("embedded:smollm2", "embedded:tiny")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def models(run: Run) -> Iterator[str]:
    """Models that do not exist."""
    named = {"model.path": run.model.path, "trainer.teacher.model": run.trainer.teacher.model}
    named |= {f"{at}.{name}.model": entry.model for at, some in run.rewards.items() for name, entry in some.items()}
    if run.job == "evaluate":
        named["evaluate.against"] = run.evaluate.against
    yield from (f"{key}={path}: {wrong}" for key, path in named.items() if path and (wrong := _not_there(path)))


def _not_there(path: str) -> str | None:
    """Why no model can be at `path`."""
    if path.startswith("embedded:"):
        return None if path in EMBEDDED else f"choose from {', '.join(EMBEDDED)}"
    if os.path.exists(os.path.expanduser(path)):
        return None
    if path.startswith((".", "/", "~")):
        from posttrain.config.suggestions import near_path

        return f"no such folder{near_path(path)}"
    return None if HUB_ID.fullmatch(path) else "neither a folder here nor an id of the hub, ORG/NAME"


def wrong_choice(key: str, value: object, allowed: tuple[str, ...]) -> str | None:
    """What is wrong with a value that must be one of `allowed`."""
    if value in allowed:
        return None
    from posttrain.config.suggestions import choose

    return f"{key}={value}: {choose(value, allowed)}"
