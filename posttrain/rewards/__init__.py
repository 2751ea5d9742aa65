"""Rewards by name: each entry of `reward` (or `probe.rewards`) becomes a function in TRL's signature."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from posttrain.config import RewardConfig

if TYPE_CHECKING:
    from posttrain.generate import Drawn

RewardFunction = Callable[..., list[float | None]]


def check(entries: dict[str, RewardConfig], path: str) -> list[str]:
    """Everything wrong with reward entries that can be known without loading a model."""
    errors = []
    for name, entry in entries.items():
        key = f"{path}.{name}"
        if sum(given is not None for given in (entry.function, entry.model, entry.grader)) != 1:
            errors.append(
                f"{key}: give one of function=package.module.function, model=RUN_OR_HUB_ID or grader=FILE.json"
            )
        elif entry.grader is not None:
            from posttrain.rewards import graders

            errors += graders.check(entry, key)
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
            if entry.function.startswith("posttrain.rewards.verify."):
                from posttrain.rewards import verify

                errors += verify.check(entry.function.rpartition(".")[2], entry.args, key)
    return errors


def resolve(entries: dict[str, RewardConfig], shared: str | None = None) -> dict[str, RewardFunction]:
    """Name -> reward function; reward models are loaded, and become functions too.

    That named `shared` waits for the policy whose base it goes onto.
    """
    functions: dict[str, RewardFunction] = {}
    for name, entry in entries.items():
        if entry.model is not None:
            from posttrain.rewards.model import RewardModel

            functions[name] = RewardModel(entry.model, shared=name == shared, **entry.args)
        elif entry.grader is not None:
            from posttrain.rewards.graders import open_grader

            functions[name] = open_grader(name, entry)
        else:
            assert entry.function is not None
            functions[name] = functools.partial(_import(entry.function), **entry.args)
    return functions


def score(
    functions: dict[str, RewardFunction], rows: list[dict[str, Any]], drawn: list[Drawn], state: Any = None
) -> dict[str, list[float | None]]:
    """Each reward's score of each completion `drawn` for the prompt of its row; None where it does not apply.

    Functions get what TRL's trainers give them: a conversation for a conversation, ids, the rows' other columns.
    """
    if not rows:
        return {name: [] for name in functions}
    prompts = [row["prompt"] for row in rows]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    given = [answer(row["prompt"], d.text) for row, d in zip(rows, drawn, strict=True)]
    return {
        name: list(
            function(
                completions=given,
                prompts=prompts,
                prompt_ids=[d.prompt_ids for d in drawn],
                completion_ids=[d.ids for d in drawn],
                trainer_state=state,
                **columns,
            )
        )
        for name, function in functions.items()
    }


def answer(prompt: Any, text: str) -> Any:
    """The completion in the form of its prompt: text, or a conversation of one turn."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def total(scores: Mapping[str, float | None], entries: Mapping[str, RewardConfig]) -> float | None:
    """The weighted sum of one completion's rewards, as TRL's trainers add them; None where none applies."""
    applicable = [entries[name].weight * value for name, value in scores.items() if applies(value)]
    return sum(applicable) if applicable else None


def applies(value: float | None) -> TypeGuard[float]:
    """Whether a reward is a number: None and NaN mean that it does not apply."""
    return value is not None and not math.isnan(value)


def missing_columns(entries: Mapping[str, RewardConfig], path: str, columns: list[str]) -> list[str]:
    """Rewards that name the data columns they read: what to say before any work when one is not there."""
    errors = []
    for name, entry in entries.items():
        if entry.grader is not None:
            from posttrain.rewards import graders

            errors += graders.missing_columns(entry, f"{path}.{name}", columns)
        elif (column := entry.args.get("column") or default_column(entry)) and column not in columns:
            errors.append(f"{path}.{name}: reads the column {column!r}, and the data has {', '.join(sorted(columns))}")
    return errors


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
