"""The user's data on a recipe: settings of the recipe's own data set are dropped."""

from collections.abc import Sequence
from typing import Any

from posttrain.config.schema import DataConfig

# What says where a data set's rows are and how they are written; sizes, `on_error` and the like hold for any.
BELONGING = (
    *("name", "revision", "split", "eval_split", "eval_path", "columns", "args", "conversational", "format"),
    *("threshold", "min_score"),
)
# Data that is no file, which the groups of conf/data are for: what comes with the package, and tasks that are drawn.
BUILT_IN = ("embedded:", "reasoning_gym:")


def reset_settings(data: DataConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Put back to its default what belongs to another data set than `data.path`; returns what it was.

    That is where the command names a path itself, of all that it does not name as well. Where `data.eval_path` is data
    that is no file, such as the recipe's own, the split and the arguments are those of that.
    """
    given = {override.lstrip("+~").split("=")[0] for override in overrides}
    if "data.path" not in given or not data.path or str(data.path).startswith(BUILT_IN):
        return {}
    default, dropped = DataConfig(), {}
    kept = ("eval_split", "args") if str(data.eval_path).startswith(BUILT_IN) and "data.eval_path" in given else ()
    for name in BELONGING:
        if name in kept:
            continue
        value = getattr(data, name)
        named = any(key == f"data.{name}" or key.startswith(f"data.{name}.") for key in given)
        if value != getattr(default, name) and not named:
            dropped[name] = value
            setattr(data, name, getattr(default, name))
    return dropped
