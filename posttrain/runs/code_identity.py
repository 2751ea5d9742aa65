"""Digests of the code that a run's settings name: rewards, and the user's tools, environments, rollouts, callbacks."""

import importlib.util
import os
from pathlib import Path
from typing import Any

from posttrain.runs.content import content

CALIBRATION = "calibration.json"
# Arguments of rewards that name files, runs or models.
REWARD_ARGS = ("model", "models", "template", "schema", "embeddings")


def trainer(settings: dict[str, Any]) -> dict[str, Any]:
    """`sources`: digests of the user's own code that the trainer's `settings` name; empty where they name none."""
    paths = [settings["kind"], *settings["tools"], settings["environment"], settings["rollout"]]
    paths += [next(iter(one), "") if isinstance(one, dict) else one for one in settings["callbacks"]]
    named = [path for path in paths if isinstance(path, str) and "." in path and not path.startswith("trl.")]
    sources = {path: _source(path) for path in named}
    return {"sources": sources} if sources else {}


def rewards(entries: list[dict[str, Any]]) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    """Add digests of code and calibration to the `entries` of rewards; returns their settings that name a path."""
    for entry in entries:
        del entry["timeout"]  # a time limit does not change the reward
        entry["args"] = {**entry["args"], **_calibration(entry)}
        entry["source"] = entry["function"] and _source(entry["function"])
    return [(entry, ("model", "grader")) for entry in entries] + [(entry["args"], REWARD_ARGS) for entry in entries]


def _calibration(entry: dict[str, Any]) -> dict[str, Any]:
    """The content of the calibration that adjusts a reward model's scores; it may change after a new measurement."""
    args = entry["args"]
    if not args.keys() & {"calibration", "scale", "length_penalty"}:
        return {}
    named = args.get("calibration") or args.get("models") or entry["model"]
    folders = list(named.values()) if isinstance(named, dict) else named if isinstance(named, list) else [named]
    return {"calibration": [content(Path(os.path.expanduser(str(folder))) / CALIBRATION) for folder in folders]}


def _source(function: str) -> str | None:
    """A digest of the file that defines a user's function or class; our own count by our version."""
    module = function.rpartition(".")[0]
    if not module or module.startswith("posttrain."):
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None  # the checks of rewards report it
    return content(Path(spec.origin)) if spec and spec.origin else None
