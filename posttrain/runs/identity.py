"""The identity of a run: a digest of everything that decides its result.

Settings, the content of what they name on this machine (files, folders, finished runs, reward functions), and the
code's version. `posttrain.runs.directory` names the run's directory by it.
"""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.config.schema import OTHER_JOBS, Run
from posttrain.data.files import resolve
from posttrain.runs.content import HASHED_WHOLE, content, file_stamp

# Settings that change where things go or what is shown, never what is trained.
NOT_IN_DIGEST = ("name", "output_dir", "objective", "dry_run", "tracking", "alarms")
# Settings of benchmarks, which earlier versions did not have.
BENCHMARKS = ("tasks", "task_path", "num_fewshot", "limit", "apply_chat_template")


def digest(run: Run) -> str:
    """Eight hex digits over everything that decides the result: settings, what they name here, and the code's version.

    A local file or folder counts by its content, wherever it lies; a finished run by what it made.
    """
    unused = (*NOT_IN_DIGEST, *OTHER_JOBS.get(run.job, ()))
    settings = {k: v for k, v in asdict(run).items() if k not in unused}
    if settings["trainer"]["share_prompts"]:  # changes rounding only; false, which avoids that, counts
        del settings["trainer"]["share_prompts"]
    probe = settings.get("probe", {"rewards": {}, "gold": {}})
    places: list[tuple[dict[str, Any], tuple[str, ...]]] = [(settings["model"], ("path", "init_from", "chat_template"))]
    if settings.get("engine") == "transformers":  # the only one of earlier versions
        del settings["engine"]
    if probe.get("start"):  # what earlier versions did
        del probe["start"]
    settings["trainer"] = _trainer(settings["trainer"])
    judges = (settings["reward"], probe["rewards"], probe["gold"])
    if rewards := [entry for entries in judges for entry in entries.values()]:
        from posttrain.runs import code_identity

        places += code_identity.rewards(rewards)
    places += [(probe, ("texts",)), (probe["safety"], ("harmful", "harmless"))] if "probe" in settings else []
    if "evaluate" in settings:
        evaluate = settings["evaluate"]
        settings["evaluate"] = evaluate = {k: v for k, v in evaluate.items() if v or k not in BENCHMARKS}
        places += [(evaluate, ("against", "task_path"))]
    for group, keys in places:
        for key in keys:
            if group.get(key):
                group[key] = _path_content(group[key])
    for data in (settings["data"], *settings["data"]["mix"].values()):
        for key in ("path", "eval_path"):
            data[key] = data_content(data.get(key), streaming=run.data.streaming)
    settings["version"] = __version__
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _trainer(settings: dict[str, Any]) -> dict[str, Any]:
    """The trainer's settings that are set, with digests of the teacher and of the user's own code."""
    later = ("teacher", "tools", "environment", "rollout", "callbacks")  # left out when unset, as before them
    found = {name: value for name, value in settings.items() if value or name not in later}
    teacher = {name: value for name, value in found.pop("teacher").items() if value}
    if teacher:
        found["teacher"] = {**teacher, "model": _path_content(teacher.get("model"))}
    if "." in found["kind"] or any(name in found for name in later[1:]):
        from posttrain.runs import code_identity

        found |= code_identity.trainer(settings)
    return found


def _path_content(value: Any) -> Any:
    """The content digest of a path, or of several; any other value unchanged."""
    if isinstance(value, list):
        return [_path_content(one) for one in value]
    if isinstance(value, dict):
        return {name: _path_content(one) for name, one in value.items()}
    return (content(Path(os.path.expanduser(value))) or value) if isinstance(value, str) else value


def data_content(path: Any, streaming: bool = False) -> Any:
    """The digest of a data path: of its files in their order, or of its folder; else the path itself.

    With `streaming`, large files count by size and modification time, since reading them would take too long.
    """
    if not path:
        return path
    if files := resolve(path):
        return [
            file_stamp(file) if streaming and file.stat().st_size > HASHED_WHOLE else content(file) for file in files
        ]
    return content(Path(os.path.expanduser(path))) or path if isinstance(path, str) else path
