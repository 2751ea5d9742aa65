"""Rows of Arrow data: Parquet files, the hub, folders that `datasets` saved, embedded sets."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.schema import DataConfig
from posttrain.data import files
from posttrain.data.row import INDEX_COLUMN, Place, Row, display_path
from posttrain.errors import PosttrainError, first_line

if TYPE_CHECKING:
    from datasets import Dataset


def load_arrow(config: DataConfig, path: Any, local: list[Path], split: str, key: str, streaming: bool = False) -> Any:
    """A data set from the hub, a folder, Parquet files, or the package; with `streaming`, files are read row by row."""
    import datasets

    if not local and not isinstance(path, str):
        raise PosttrainError(f"{key}={display_path(path)}: a list names files")
    try:
        if local:
            import pyarrow.parquet

            for file in local:
                try:
                    files.check_content(file)
                except PosttrainError as error:
                    raise PosttrainError(f"{key}={display_path(path)}: {error}") from None
            if not sum(pyarrow.parquet.ParquetFile(file).metadata.num_rows for file in local):
                raise PosttrainError(f"{key}={display_path(path)}: no rows")
            names = [str(file) for file in local]
            return datasets.load_dataset("parquet", data_files=names, split="train", streaming=streaming)
        if path.startswith("embedded:"):
            from posttrain.data.embedded import arithmetic, imdb, squad

            others = {"embedded:imdb": imdb.load, "embedded:arithmetic": arithmetic.load}
            found = others[path]() if path in others else squad.load(config.args)
            return _pick(found, split, key, path)
        if path.startswith("reasoning_gym:"):
            from posttrain.data.embedded import gym

            return _pick(gym.load(path, config.args), split, key, path)
        if is_saved_dataset(path):
            found = datasets.load_from_disk(os.path.expanduser(path))
            return _pick(found, split, key, path) if isinstance(found, datasets.DatasetDict) else found
        return datasets.load_dataset(path, config.name, split=split, revision=config.revision, streaming=streaming)
    except PosttrainError:
        raise
    except Exception as error:
        raise PosttrainError(f"{key}={display_path(path)}: {explain(error, display_path(path), split)}") from error


def is_saved_dataset(path: str) -> bool:
    """Whether `path` is a folder that `datasets` saved."""
    folder = Path(os.path.expanduser(path))
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def arrow_rows(dataset: Any, path: Any, local: list[Path]) -> Iterator[Row]:
    """Rows of a loaded data set; rows of local Parquet files have their file and their number in it as place.

    Arrow gives all objects of a column the same keys; keys without a value are removed again.
    """
    rows = iter(
        {**_without_null_keys(row), INDEX_COLUMN: index}
        for index, row in enumerate(_iterate_rows(dataset, display_path(path)))
    )
    if not local:
        for number, row in enumerate(rows, 1):
            yield Place(display_path(path), "row", number), row
        return
    import pyarrow.parquet

    for file in local:
        count = pyarrow.parquet.ParquetFile(file).metadata.num_rows
        for number, row in enumerate(itertools.islice(rows, count), 1):
            yield Place(str(file), "row", number), row


def _iterate_rows(dataset: Any, path: str) -> Iterator[dict[str, Any]]:
    count = 0
    try:
        for row in dataset:
            count += 1
            yield row
    except UnicodeDecodeError as error:
        raise PosttrainError(f"data.path={path}: row {count + 1}: holds text that is not UTF-8: {error}") from None


def _without_null_keys(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _without_nulls(value) if isinstance(value, (list, dict)) else value for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _pick(splits: Any, split: str, key: str, path: str) -> Dataset:
    if split not in splits:
        raise PosttrainError(f"{key}={path}: no split {split}; there are {', '.join(splits)}")
    return splits[split]


def explain(error: Exception, path: str, split: str) -> str:
    """An error of `datasets` in terms of the settings `data.path`, `data.name` and `data.split`."""
    from posttrain.hub import explain

    if known := explain(error, path, "data set"):
        return known
    if isinstance(error, ValueError) and "BuilderConfig" in str(error):
        return f"{first_line(error)}; choose one with data.name=NAME"
    if isinstance(error, ValueError) and "split" in str(error).lower():
        return f"no split {split} ({first_line(error)}); choose with data.split and data.eval_split"
    cause = error.__cause__ or error
    return f"cannot be read: {first_line(cause)}"
