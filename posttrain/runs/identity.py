"""The identity of a run: a digest of everything that decides its result.

Settings, the content of what they name on this machine (files, folders, finished runs, reward functions), and the
code's version. `posttrain.runs.directory` names the run's directory by it.
"""

import hashlib
import importlib.util
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.config.schema import OTHER_JOBS, Run
from posttrain.data.files import resolve

# Folders in a run directory that are no part of its result; creating them later does not change its digest.
NOT_CONTENT = ("checkpoints", "export", "merged", "base")
# Settings of the trainer that name the user's own code.
CODE_SETTINGS = ("tools", "environment", "rollout", "callbacks")
HASHED_WHOLE = 64 << 20
CALIBRATION = "calibration.json"
# Settings that change where things go or what is shown, never what is trained.
NOT_IN_DIGEST = ("name", "output_dir", "objective", "dry_run", "tracking", "alarms")
# Settings of benchmarks, which earlier versions did not have.
BENCHMARKS = ("tasks", "task_path", "num_fewshot", "limit", "apply_chat_template")
# Arguments of rewards that name files, runs or models.
REWARD_ARGS = ("model", "models", "template", "schema", "embeddings")


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
    rewards = [entry for entries in judges for entry in entries.values()]
    places += [(entry, ("model", "grader")) for entry in rewards]
    for entry in rewards:
        del entry["timeout"]  # a time limit does not change the reward
        entry["args"] = {**entry["args"], **_calibration(entry)}
        entry["source"] = entry["function"] and _source(entry["function"])
        places += [(entry["args"], REWARD_ARGS)]
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
    """The trainer's settings that are set, and digests of the user's own code that they name."""
    later = ("teacher", *CODE_SETTINGS)  # left out when unset, so that runs of earlier versions keep their digest
    found = {name: value for name, value in settings.items() if value or name not in later}
    teacher = {name: value for name, value in found.pop("teacher").items() if value}
    if teacher:
        found["teacher"] = {**teacher, "model": _path_content(teacher.get("model"))}
    paths = [found["kind"], *settings["tools"], settings["environment"], settings["rollout"]]
    paths += [next(iter(one), "") if isinstance(one, dict) else one for one in settings["callbacks"]]
    named = [path for path in paths if isinstance(path, str) and "." in path and not path.startswith("trl.")]
    sources = {path: _source(path) for path in named}
    return {**found, "sources": sources} if sources else found


def _calibration(entry: dict[str, Any]) -> dict[str, Any]:
    """The content of the calibration that adjusts a reward model's scores; it may change after a new measurement."""
    args = entry["args"]
    if not args.keys() & {"calibration", "scale", "length_penalty"}:
        return {}
    named = args.get("calibration") or args.get("models") or entry["model"]
    folders = list(named.values()) if isinstance(named, dict) else named if isinstance(named, list) else [named]
    return {"calibration": [content(Path(os.path.expanduser(str(folder))) / CALIBRATION) for folder in folders]}


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
            _file_stamp(file) if streaming and file.stat().st_size > HASHED_WHOLE else content(file) for file in files
        ]
    return content(Path(os.path.expanduser(path))) or path if isinstance(path, str) else path


def _file_stamp(file: Path) -> str:
    known = file.stat()
    return f"{file.name} {known.st_size} {known.st_mtime_ns}"


def content(path: Path) -> str | None:
    """A digest of a local file or folder (large files in it by size and modification time); `None` for other paths.

    A run's digest is `content` in its `run.json`, which depends on its result, not on its time.
    """
    whole = hashlib.sha256()
    if path.is_file():
        _hash_file(whole, path)
    elif path.is_dir():
        if made := _made_content(path):
            return made
        for inner in sorted(p for p in path.rglob("*") if p.is_file() and _counts(p.relative_to(path))):
            known = inner.stat()
            whole.update(f"{inner.relative_to(path)} {known.st_size}".encode())
            if known.st_size <= HASHED_WHOLE:
                _hash_file(whole, inner)
            else:  # reading many gigabytes of weights would take too long
                whole.update(f" {known.st_mtime_ns}".encode())
    else:
        return None
    return whole.hexdigest()


def _source(function: str) -> str | None:
    """A digest of the file that defines a user's reward function; our functions count by our version."""
    module = function.rpartition(".")[0]
    if not module or module.startswith("posttrain."):
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None  # the checks of rewards report it
    return content(Path(spec.origin)) if spec and spec.origin else None


def _made_content(folder: Path) -> str | None:
    """The digest in the record of a finished run in `folder`."""
    record = folder / "run.json"
    with suppress(ValueError, AttributeError):  # whoever uses a run with a damaged record says so
        return json.loads(record.read_text(encoding="utf-8")).get("content") if record.is_file() else None
    return None


def files_digest(files: list[Path]) -> str:
    """A digest (16 hex digits) of the files' names and content, independent of their folder."""
    whole = hashlib.sha256()
    for file in sorted(files, key=lambda path: path.name):
        whole.update(file.name.encode())
        _hash_file(whole, file)
    return whole.hexdigest()[:16]


def _hash_file(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def _counts(inner: Path) -> bool:
    return inner.parts[0] not in NOT_CONTENT and not any(p.startswith((".", "checkpoint-")) for p in inner.parts)
