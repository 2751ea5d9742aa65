"""Rewards by name: each entry of `reward` (or `probe.rewards`) becomes a function in TRL's signature."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable

from posttrain.config import RewardConfig

RewardFunction = Callable[..., list[float | None]]


def check(entries: dict[str, RewardConfig], path: str) -> list[str]:
    """Everything wrong with reward entries that can be known without loading a model."""
    errors = []
    for name, entry in entries.items():
        key = f"{path}.{name}"
        if (entry.function is None) == (entry.model is None):
            errors.append(f"{key}: give either function=package.module.function or model=RUN_OR_HUB_ID")
        elif entry.function is not None:
            try:
                function = _import(entry.function)
            except (ImportError, AttributeError, ValueError) as error:
                errors.append(f"{key}.function={entry.function}: {error}")
                continue
            accepted = inspect.signature(function).parameters
            takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
            errors += [
                f"{key}.args.{argument}: {entry.function} takes {', '.join(n for n in accepted if n != 'completions')}"
                for argument in entry.args
                # A reward function takes **columns, so a misspelt option would vanish among them.
                if argument not in accepted and (not takes_any or entry.function.startswith("posttrain."))
            ]
    return errors


def resolve(entries: dict[str, RewardConfig]) -> dict[str, RewardFunction]:
    """Name -> reward function; reward models are loaded, and become functions too."""
    functions: dict[str, RewardFunction] = {}
    for name, entry in entries.items():
        if entry.model is not None:
            from posttrain.rewards.model import RewardModel

            functions[name] = RewardModel(entry.model, **entry.args)
        else:
            assert entry.function is not None
            functions[name] = functools.partial(_import(entry.function), **entry.args)
    return functions


def default_column(entry: RewardConfig) -> str | None:
    """The data column a reward function reads unless told otherwise: the default of its `column` argument."""
    if entry.function is None:
        return None
    column = inspect.signature(_import(entry.function)).parameters.get("column")
    return column.default if column is not None and isinstance(column.default, str) else None


def _import(path: str) -> RewardFunction:
    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        raise ValueError("expected package.module.function")
    function = getattr(importlib.import_module(module_name), attribute)
    if not callable(function):
        raise ValueError("is not a function")
    return function
