"""Data and rewards on the command line of a recipe: settings that belong to the recipe's own data are dropped."""

from collections.abc import Sequence
from typing import Any

from posttrain.config.schema import DataConfig, Run

# Settings that fit one data set only: where its rows are and how they are written. Sizes and `on_error` fit any.
BELONGING = (
    *("name", "revision", "split", "eval_split", "eval_path", "columns", "args", "conversational", "format"),
    *("threshold", "min_score"),
)
# Beginnings of a path that is no file: data of the package, and generated tasks. The groups of conf/data set these.
BUILT_IN = ("embedded:", "reasoning_gym:")


def reset_settings(run: Run, overrides: Sequence[str]) -> dict[str, Any]:
    """Reset the settings in `run` that belong to the recipe's own data; returns their former values.

    If `overrides` set `data.path` to a path, every setting of `BELONGING` that they do not set gets its default. With a
    built-in `data.eval_path` among them, `eval_split` and `args` stay: they belong to that data.

    `~reward` also drops every reward that `overrides` do not name; Hydra drops only those of a config group.
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
