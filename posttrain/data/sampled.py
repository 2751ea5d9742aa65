"""Runs of job=sample as a source of data."""

import json
import os
from pathlib import Path
from typing import Any

from posttrain.config.schema import DataConfig
from posttrain.errors import PosttrainError


def data_file(path: Any) -> Any:
    """`path`, or the Parquet file of a run of job=sample; raises `PosttrainError` for an unfinished or another run."""
    if not isinstance(path, str) or not path:
        return path  # a list of files; nothing, for a mixture
    record = Path(os.path.expanduser(path)) / "run.json"
    if not record.is_file():
        return path
    try:
        run = dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise PosttrainError(f"{path}: its run.json cannot be read ({error}); sample again") from None
    if run.get("job") != "sample":
        raise PosttrainError(f"{path}: this run has no data; data is made by runs of job=sample")
    if run.get("status") != "finished":
        raise PosttrainError(f"{path}: this run is not finished; continue it with the command in its run.json")
    return str(record.parent / "data" / "train.parquet")


def sampled_runs(data: DataConfig) -> list[str]:
    """The runs of job=sample among the sources of `data`."""
    paths = [data.path, *(part.get("path") for part in data.mix.values())]
    return [path for path in paths if data_file(path) != path]
