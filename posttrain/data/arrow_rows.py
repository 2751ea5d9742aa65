"""Rows of Arrow data: Parquet files, the hub, folders that `datasets` saved, embedded sets."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.schema import DataConfig
from posttrain.data.row import INDEX_COLUMN, Place, Row, display_path
from posttrain.data.store import Stored, store
from posttrain.errors import PosttrainError, first_line

if TYPE_CHECKING:
    from datasets import Dataset


def load(config: DataConfig, local: list[Path], key: str, streaming: bool = False) -> Any:
    """A data set from the hub, a folder, Parquet files, or the package, its columns renamed.

    With `streaming`, it is read row by row. Raises `PosttrainError` where it cannot be read, or has no rows.
    """
    path, split = config.path, config.split
    named = f"{key}={display_path(path)}"
    if not local and not isinstance(path, str):
        raise PosttrainError(f"{named}: a list names files")
    try:
        found = _parquet(local, named, streaming) if local else _named(config, path, streaming)
    except PosttrainError:
        raise
    except Exception as error:
        raise PosttrainError(f"{named}: {explain(error, display_path(path), split)}") from error
    if isinstance(found, dict):
        if split not in found:
            raise PosttrainError(f"{named}: no split {split}; there are {', '.join(found)}")
        found = found[split]
    if config.columns:
        from posttrain.data.renaming import rename_dataset

        found = rename_dataset(found, config.columns)
    if not streaming and not len(found):
        raise PosttrainError(f"{named}: no rows")
    return found


def _parquet(files: list[Path], named: str, streaming: bool) -> Any:
    import datasets
    import pyarrow.parquet

    from posttrain.data import file_contents

    for file in files:
        try:
            file_contents.check(file, ".parquet")
        except PosttrainError as error:
            raise PosttrainError(f"{named}: {error}") from None
    if not sum(pyarrow.parquet.ParquetFile(file).metadata.num_rows for file in files):
        raise PosttrainError(f"{named}: no rows")
    return datasets.load_dataset("parquet", data_files=[*map(str, files)], split="train", streaming=streaming)


def _named(config: DataConfig, path: str, streaming: bool) -> Any:
    """A data set of the package, a saved one, or one of the hub; the first two may have several splits."""
    import datasets

    if path.startswith("embedded:"):
        from posttrain.data.embedded import arithmetic, imdb, squad

        others = {"embedded:imdb": imdb.load, "embedded:arithmetic": arithmetic.load}
        return others[path]() if path in others else squad.load(config.args)
    if path.startswith("reasoning_gym:"):
        from posttrain.data.embedded import gym

        return gym.load(path, config.args)
    if is_saved_dataset(path):
        return datasets.load_from_disk(os.path.expanduser(path))
    return datasets.load_dataset(path, config.name, split=config.split, revision=config.revision, streaming=streaming)


def is_saved_dataset(path: str) -> bool:
    """Whether `path` is a folder that `datasets` saved."""
    folder = Path(os.path.expanduser(path))
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def rows(dataset: Any, path: Any, local: list[Path]) -> Iterator[Row]:
    """Rows of a loaded data set; rows of local Parquet files have their file and their number in it as place.

    Arrow gives all objects of a column the same keys; keys without a value are removed again.
    """
    index = -1
    try:
        for index, (row, place) in enumerate(zip(dataset, _places(path, local), strict=False)):
            yield place, {**{name: _without_nulls(value) for name, value in row.items()}, INDEX_COLUMN: index}
    except UnicodeDecodeError as error:
        where = f"data.path={display_path(path)}: row {index + 2}"
        raise PosttrainError(f"{where}: holds text that is not UTF-8: {error}") from None


def _places(path: Any, local: list[Path]) -> Iterator[Place]:
    if not local:
        yield from (Place(display_path(path), "row", number) for number in itertools.count(1))
        return
    import pyarrow.parquet

    for file in local:
        count = pyarrow.parquet.ParquetFile(file).metadata.num_rows
        yield from (Place(str(file), "row", number) for number in range(1, count + 1))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def store_with_types(dataset: Dataset, source: Any, named: str, skip: bool) -> Stored:
    """Store the converted rows of `dataset`; columns that need no conversion keep the types that they have there.

    `source` is a `RowSource` of `posttrain.data.reading`.
    """
    from datasets import concatenate_datasets

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        return {**source.convert.columns(row), INDEX_COLUMN: row[INDEX_COLUMN]}

    stored, skipped = store(source.rows(), convert, named, skip, source.convert.check)
    numbers = stored[INDEX_COLUMN][:]
    stored = stored.remove_columns(INDEX_COLUMN)
    used = {*source.convert.used, *stored.column_names}
    rest = dataset.select_columns(source.convert.extra_columns(dataset.column_names, used))
    if not stored.column_names:
        stored = rest.select(numbers)
    elif rest.column_names:
        stored = concatenate_datasets([stored, rest if len(numbers) == len(rest) else rest.select(numbers)], axis=1)
    return stored, skipped


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
