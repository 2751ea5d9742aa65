"""Nested settings as flat ones, `a.b.c` -> value."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from posttrain.config import recipes


@cache
def groups() -> frozenset[str]:
    """The config groups: `peft` of `peft=qlora`."""
    return frozenset(recipes.groups())


def flatten(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as `a.b.c` -> value, later layers over earlier ones.

    A choice of a group (`peft: qlora`) replaces what earlier layers set in that group.
    """
    result: dict[str, Any] = {}
    for layer in layers:
        # Choices first: within a layer they go together with values of their group.
        for key, value in sorted(leaves(layer), key=lambda item: item[0] not in groups()):
            result = {k: v for k, v in result.items() if k != key and not k.startswith(f"{key}.")}
            result[key] = value
    return result


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """All values of `settings` as (`a.b.c`, value); an empty dict is a value."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
