"""Rewards by name: each entry of `reward` (or `probe.rewards`) becomes a function in TRL's signature.

`function` may also name a class, which is built once with `args`. Its optional class methods `check(args, key)` and
`check_reachable(args, key)` return errors before it is built: the first reads files at most, the second may read
models' configs and ask endpoints.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeGuard

from posttrain.config import code
from posttrain.config.schema import RewardConfig
from posttrain.errors import PosttrainError
from posttrain.rewards import binding, user_function
from posttrain.rewards.checks import check as check
from posttrain.rewards.checks import check_all_reachable as check_all_reachable
from posttrain.rewards.checks import check_columns as check_columns
from posttrain.rewards.checks import check_reachable as check_reachable
from posttrain.rewards.checks import check_run as check_run
from posttrain.rewards.checks import column_errors as column_errors
from posttrain.rewards.checks import compares as compares
from posttrain.rewards.checks import default_column as default_column
from posttrain.rewards.checks import missing_columns as missing_columns

if TYPE_CHECKING:
    from posttrain.models.generate import Generated

RewardFunction = Callable[..., list[float | None]]


def resolve(entries: dict[str, RewardConfig], shared: str | None = None) -> dict[str, RewardFunction]:
    """Name -> reward function; reward models are loaded, and become functions too.

    The reward model named `shared` is not loaded here; it is attached to the policy's base later.
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
            function = code.load(entry.function)
            built = isinstance(function, type)
            bound = _built(name, entry) if built else binding.bind(entry.function, function, entry.args)
            functions[name] = user_function.wrap(name, entry.function, bound, entry.timeout)
    return functions


def _built(name: str, entry: RewardConfig) -> Any:
    try:
        return code.load(str(entry.function))(**entry.args)
    except PosttrainError:
        raise
    except Exception as error:  # the class's own code
        raise PosttrainError(f"reward {name} ({entry.function}): cannot be built: {code.error_line(error)}") from error


def score(
    functions: dict[str, RewardFunction], rows: list[dict[str, Any]], drawn: list[Generated], state: Any = None
) -> dict[str, list[float | None]]:
    """Name -> the score of each completion in `drawn` for the prompt of its row; None where a reward does not apply.

    Functions get what TRL's trainers pass: conversations for conversational prompts, ids, the rows' other columns.
    """
    if not rows:
        return {name: [] for name in functions}
    prompts = [row["prompt"] for row in rows]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    given = [d.messages or as_completion(row["prompt"], d.text) for row, d in zip(rows, drawn, strict=True)]
    return {
        name: list(
            _awaited(
                function(
                    completions=given,
                    prompts=prompts,
                    prompt_ids=[d.prompt_ids for d in drawn],
                    completion_ids=[d.ids for d in drawn],
                    trainer_state=state,
                    **columns,
                )
            )
        )
        for name, function in functions.items()
    }


def _awaited(scores: Any) -> Any:
    """What an `async def` reward returns, or `scores` themselves; in a thread, as this one may run an event loop."""
    if not inspect.iscoroutine(scores):
        return scores
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, scores).result()


def compare_completions(
    function: Any, rows: list[dict[str, Any]], drawn: list[Generated], others: list[Generated]
) -> tuple[list[float | None], list[float | None]]:
    """A judge's scores of the completions `drawn` against `others` of the same rows, and the scores of `others`."""
    texts = [
        [as_completion(row["prompt"], d.text) for row, d in zip(rows, side, strict=True)] for side in (drawn, others)
    ]
    won = function.compare([row["prompt"] for row in rows], *texts)
    return won, [None if value is None else 1 - value for value in won]


def take_judge_counts(functions: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of the judges among `functions` since the last call; judges that judged no pair are left out."""
    judges = {name: function for name, function in functions.items() if compares(function)}
    return {name: counts for name, judge in judges.items() if (counts := judge.take_counts()).pairs}


def as_completion(prompt: Any, text: str) -> Any:
    """The completion in the form of its prompt: text, or a conversation of one turn."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def total(scores: Mapping[str, float | None], entries: Mapping[str, RewardConfig]) -> float | None:
    """The weighted sum of one completion's rewards, as TRL's trainers add them; None where none applies."""
    applicable = [entries[name].weight * value for name, value in scores.items() if applies(value)]
    return sum(applicable) if applicable else None


def applies(value: float | None) -> TypeGuard[float]:
    """Whether a reward is a number: None and NaN mean that it does not apply."""
    return value is not None and not math.isnan(value)
