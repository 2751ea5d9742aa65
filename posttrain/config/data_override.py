"""The user's data and rewards on a recipe: what belongs to the recipe's own is dropped."""

from collections.abc import Sequence
from typing import Any

from posttrain.config.schema import DataConfig, Run

# What says where a data set's rows are and how they are written; sizes, `on_error` and the like hold for any.
BELONGING = (
    *("name", "revision", "split", "eval_split", "eval_path", "columns", "args", "conversational", "format"),
    *("threshold", "min_score"),
)
# Data that is no file, which the groups of conf/data are for: what comes with the package, and tasks that are drawn.
BUILT_IN = ("embedded:", "reasoning_gym:")


def reset_settings(run: Run, overrides: Sequence[str]) -> dict[str, Any]:
    """Put back to its default what belongs to another data set than `data.path`; returns what it was.

    That is where the command names a path itself, of all that it does not name as well. Where `data.eval_path` is data
    that is no file, such as the recipe's own, the split and the arguments are those of that.

    `~reward` drops all rewards that the command does not name: Hydra drops those of a group alone.
    """
    if run.job == "pipeline":
        from posttrain.config import stage_override

        stage_override.restore(run, overrides)
    data, given = run.data, {override.lstrip("+~").split("=")[0] for override in overrides}
    if "~reward" in overrides:
        named = {key.split(".")[1] for key in given if key.startswith("reward.")}
        run.reward = {name: entry for name, entry in run.reward.items() if name in named}
    if "data.path" not in given or not data.path or str(data.path).startswith(BUILT_IN):
        return {}
    default, dropped = DataConfig(), {}
    kept = ("eval_split", "args") if str(data.eval_path).startswith(BUILT_IN) and "data.eval_path" in given else ()
    for name in BELONGING:
        value = getattr(data, name)
        chosen = any(key == f"data.{name}" or key.startswith(f"data.{name}.") for key in given)
        if value != getattr(default, name) and not chosen and name not in kept:
            dropped[name] = value
            setattr(data, name, getattr(default, name))
    return dropped
