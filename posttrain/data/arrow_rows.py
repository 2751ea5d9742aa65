"""Rows of Arrow data: Parquet files, the hub, folders that `datasets` saved, embedded sets."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.schema import DataConfig
from posttrain.data.row import INDEX_COLUMN, Place, Row, display_path
from posttrain.data.store import Stored, store, temporary_file
from posttrain.errors import PosttrainError, first_line

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset, Features


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
        why = f"cannot be read: {first_line(error)}" if local else explain(error, display_path(path), split)
        raise PosttrainError(f"{named}: {why}") from error
    if isinstance(found, dict):
        if split not in found:
            raise PosttrainError(f"{named}: no split {split}; there are {', '.join(found)}")
        found = found[split]
    found = _as_stored(found.with_format(None))
    if config.columns:
        from posttrain.data.renaming import rename_dataset

        found = rename_dataset(found, config.columns)
    if not streaming and not len(found):
        raise PosttrainError(f"{named}: no rows")
    return found


def _parquet(files: list[Path], named: str, streaming: bool) -> Any:
    """The rows of Parquet files, without the cache of `datasets`, which trusts names and times of change."""
    import datasets
    import pyarrow.parquet
    from datasets.arrow_writer import ArrowWriter
    from datasets.iterable_dataset import ArrowExamplesIterable

    from posttrain.data import file_contents

    features, count = datasets.Features(), 0
    for file in files:
        try:
            file_contents.check(file, ".parquet")
        except PosttrainError as error:
            raise PosttrainError(f"{named}: {error}") from None
        with pyarrow.parquet.ParquetFile(file) as opened:
            count += opened.metadata.num_rows
            features |= _common_type(features, datasets.Features.from_arrow_schema(opened.schema_arrow))
    if not count:
        raise PosttrainError(f"{named}: no rows")
    tables = functools.partial(_tables, files, features)
    if streaming:
        return datasets.IterableDataset(ArrowExamplesIterable(tables, {}), info=datasets.DatasetInfo(features=features))
    path = str(temporary_file("parquet.arrow"))
    with ArrowWriter(path=path, features=features) as writer:
        for _, table in tables():
            writer.write_table(table)
        writer.finalize()
    return datasets.Dataset.from_file(path)


def _tables(files: list[Path], features: Features) -> Iterator[tuple[tuple[int, int], pyarrow.Table]]:
    """The rows of Parquet files in batches, each with a key; columns that a file lacks are null."""
    import pyarrow.parquet
    from datasets.table import table_cast

    for number, file in enumerate(files):
        with pyarrow.parquet.ParquetFile(file) as opened:
            for batch_number, batch in enumerate(opened.iter_batches(batch_size=256)):
                yield (number, batch_number), table_cast(pyarrow.Table.from_batches([batch]), features.arrow_schema)


def _common_type(one: Any, other: Any) -> Any:
    """The feature `one`, with what only `other` has: columns, keys, and types where `one` has nulls only."""
    import datasets

    if isinstance(one, dict) and isinstance(other, dict):
        both = {name: _common_type(one[name], type_) if name in one else type_ for name, type_ in other.items()}
        return {**one, **both}
    if isinstance(one, (datasets.List, datasets.LargeList)) and type(one) is type(other):
        return dataclasses.replace(one, feature=_common_type(one.feature, other.feature))
    return other if one == datasets.Value("null") else one


def _as_stored(found: Any) -> Any:
    """`found`, its images, sound and video not decoded: that needs packages, fails for bad ones, and is of no use."""
    import datasets

    def stored(feature: Any) -> Any:
        if isinstance(feature, dict):
            return {name: stored(one) for name, one in feature.items()}
        if isinstance(feature, (datasets.List, datasets.LargeList)):
            return dataclasses.replace(feature, feature=stored(feature.feature))
        media = hasattr(feature, "decode") and not isinstance(feature, datasets.Json)
        return dataclasses.replace(feature, decode=False) if media else feature

    features = found.features and datasets.Features(stored(found.features))
    if features == found.features:
        return found
    if isinstance(found, datasets.IterableDataset):
        return found.decode(num_threads=0).cast(features)  # without the threads that decode those of the hub
    found.info.features = features  # a cast would copy the rows
    return found


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
