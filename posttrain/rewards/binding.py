"""A reward function with its options, which columns of the data cannot change."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from posttrain.config import code

# The args that name a column of the data.
COLUMN_ARGS = ("column", "entry_point")
# What TRL's trainers give a reward besides the data's columns.
GIVEN = (
    *("completions", "prompts", "prompt_ids", "completion_ids", "trainer_state", "environments"),
    *("log_extra", "log_metric"),
)


def bind(path: str, function: Callable[..., Any], args: dict[str, Any]) -> Callable[..., Any]:
    """`function` with its options; a column by the name of an option never sets it in a function of this package.

    There the column is called `data.NAME`, also in the option that names it.
    """
    if not path.startswith("posttrain."):
        return functools.partial(function, **args)
    options = {n for n, p in code.parameters(function).items() if p.kind is not p.VAR_KEYWORD} - {*GIVEN}
    bound = {n: f"data.{v}" if n in COLUMN_ARGS and v in options else v for n, v in args.items()}

    def call(completions: Sequence[Any], **columns: Any) -> Any:
        renamed = {f"data.{name}" if name in options else name: column for name, column in columns.items()}
        return function(completions=completions, **bound, **renamed)

    return call
