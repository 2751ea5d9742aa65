"""Where `from_pretrained` finds a model: a hub id, a folder, the `model/` of a run, or an embedded model."""

import os
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.runs.directory import RunDirectory


def pretrained_path(path: str) -> str:
    """A hub id or folder that `from_pretrained` takes, from `model.path` or `reward.*.model`."""
    if path.startswith("embedded:"):
        return str(_embedded(path))
    return model_folder(path)


def model_folder(path: str) -> str:
    """`path`, or the `model/` folder inside it when it is a run directory; raises for an unfinished run."""
    folder = Path(os.path.expanduser(path))
    if not (folder / "run.json").is_file():
        return path
    run = RunDirectory(folder)
    check_trained(run, path)
    return str(run.model)


def check_trained(run: RunDirectory, start: str) -> dict[str, Any]:
    """`run.json` of a finished training; raises `PosttrainError`, which begins with `start`, for other runs."""
    record = run.record() or {}
    if (job := record.get("job", "train")) in ("sample", "evaluate", "doctor"):
        raise PosttrainError(f"{start}: a run of job={job} has no model")
    if not run.finished():
        command = record.get("command", "its command")
        raise PosttrainError(f"{start}: this run is not finished; continue it with: {command}")
    return record


def _embedded(path: str) -> Path:
    if path == "embedded:tiny":
        from posttrain.data.embedded.tiny import tiny_model

        return tiny_model()
    if path == "embedded:smollm2":
        from posttrain.data.embedded.smollm2 import smollm2_model

        return smollm2_model()
    raise KeyError(path)
