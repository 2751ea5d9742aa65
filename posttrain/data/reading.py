"""From a data path to rows under our names: which format, which rows do not fit, what is converted."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.schema import DataConfig
from posttrain.data import files as f
from posttrain.data.formats import PAIRS, WEIGHED, check_row, check_weight, form, rename
from posttrain.data.judged import is_judged
from posttrain.data.shapes import FORMATS, detect
from posttrain.data.store import Convert, Skipped, sift, store
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset

# So many rows tell the format.
FIRST = 200
# Formats whose rows are conversations already.
CHATS = ("alpaca", "sharegpt", "openai", "openai_preference", "openai_rft", "hh", "ultrafeedback")


@dataclass(frozen=True)
class Rows:
    """Rows as read; `config` has no longer what is done already. `format` is that of the source."""

    rows: Dataset
    config: DataConfig
    format: str
    skipped: Skipped | None = None


@dataclass(frozen=True)
class Source:
    """A path before it is read through: its rows in order, the format, and what converts one (raising `Misfit`)."""

    rows: Callable[[], Iterator[f.Row]]
    format: str
    convert: Convert


def read(
    config: DataConfig, path: Any, split: str, key: str, kind: str | None, needed: tuple[str, ...] | None = None
) -> Rows:
    """The rows of `path` that trainer `kind` will learn from; with no `kind`, those that have prompts.

    `key` is the setting that names the path, `needed` the columns of TRL's form to check, if not those that `kind`
    needs. Raises `PosttrainError` for what cannot be read, does not fit, or serves another trainer.
    """
    named = f"{key}={shown(path)}"
    local = f.resolve(path)
    if local and f.kind(local[0]) != ".parquet":
        return _stored(open_files(config, local, kind, named, needed), config, named)
    dataset = rename(load_arrow(config, path, local, split, key), config.columns)
    config = replace(config, columns={})
    if not len(dataset):
        return Rows(dataset, config, "trl")
    source = open_rows(functools.partial(_arrow_rows, dataset, path, local), config, kind, needed)
    if source.format != "trl":
        return _stored(source, config, named)
    if local or config.on_error == "skip":
        return _sifted(dataset, source, config, named)
    return Rows(dataset, config, "trl")


def open_files(
    config: DataConfig, paths: list[Path], kind: str | None, named: str, needed: tuple[str, ...] | None = None
) -> Source:
    """The rows of text files, their columns renamed."""

    def rows() -> Iterator[f.Row]:
        for path in paths:
            for place, row in f.rows(path, config.columns):
                yield place, row if isinstance(row, f.Misfit) else _renamed(row, config.columns)

    try:
        if config.columns:
            _check_columns(paths, config.columns)
        return open_rows(rows, config, kind, needed)
    except PosttrainError as error:
        message = str(error)
        raise PosttrainError(message if message.startswith(("data.", "trainer.")) else f"{named}: {message}") from error


def _check_columns(paths: list[Path], columns: dict[str, str]) -> None:
    first = itertools.islice((row for path in paths for _, row in f.rows(path, columns)), FIRST)
    have = list(dict.fromkeys(name for row in first if isinstance(row, dict) for name in row))
    for ours, theirs in columns.items():
        if have and theirs not in have:
            raise PosttrainError(f"data.columns.{ours}={theirs}: no such column; the data has {', '.join(have)}")


def _renamed(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    if not columns:
        return row
    gone = {*columns, *columns.values()}
    moved = {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    return {**{name: value for name, value in row.items() if name not in gone}, **moved}


def open_rows(
    rows: Callable[[], Iterator[f.Row]], config: DataConfig, kind: str | None, needed: tuple[str, ...] | None = None
) -> Source:
    """What the first rows say of all: the format, and whether `kind` can learn from it (see `read`)."""
    first = [row for _, row in itertools.islice(rows(), FIRST) if isinstance(row, dict)]
    columns = list(dict.fromkeys(name for row in first for name in row))
    name = detect(columns, first) if config.format == "auto" else config.format
    if name != "trl":
        convert = FORMATS[name]
        _check_serves(first, convert, name, kind)
        return Source(rows, name, _weighing(convert, kind))
    if not first:
        return Source(rows, name, lambda row: row)
    if needed is not None:
        needed = tuple(name for name in needed if name in columns)
    elif kind is not None:
        needed = form(columns, kind)
    else:
        sets: tuple[tuple[str, ...], ...] = (PAIRS, ("messages",), ("prompt",))
        needed = next((one for one in sets if set(one) <= set(columns)), ())
    return Source(rows, name, _weighing(functools.partial(check_row, needed=needed), kind))


def _weighing(convert: Convert, kind: str | None) -> Convert:
    """`convert`, and a look at the weights of pairs, where `kind` learns by them."""

    def weighing(row: dict[str, Any]) -> dict[str, Any]:
        made = convert(row)
        if made.keys() >= {*PAIRS}:
            check_weight(made)
        return made

    return weighing if kind in WEIGHED else convert


def _check_serves(first: list[dict[str, Any]], convert: Convert, name: str, kind: str | None) -> None:
    for row in first if kind else ():
        try:
            columns = list(convert(row))
        except f.Misfit:
            continue
        if kind and not is_judged(columns, name):
            form(columns, kind, name)
        return


def _stored(source: Source, config: DataConfig, named: str) -> Rows:
    try:
        rows, skipped = store(source.rows, source.convert, named, config.on_error == "skip")
    except RecursionError as error:
        raise PosttrainError(f"{named}: a row is nested too deeply") from error
    chats = source.format in CHATS
    return Rows(
        rows,
        replace(config, columns={}, conversational=config.conversational and not chats),
        source.format,
        skipped,
    )


def _sifted(dataset: Dataset, source: Source, config: DataConfig, named: str) -> Rows:
    """Rows that need no conversion keep the types they were stored with; those that do not fit are left out."""
    kept: list[int] = []
    numbers = itertools.count()

    def see(row: dict[str, Any]) -> None:
        number = next(numbers)
        source.convert(row)
        kept.append(number)

    skipped = sift(source.rows(), see, named, config.on_error == "skip")
    return Rows(dataset.select(kept) if skipped else dataset, config, source.format, skipped)


def _arrow_rows(dataset: Dataset, path: Any, local: list[Path]) -> Iterator[f.Row]:
    """Rows of a loaded data set; of local Parquet files each with its file and number in it."""
    if not local:
        for number, row in enumerate(dataset, 1):
            yield f.Place(shown(path), "row", number), row
        return
    import pyarrow.parquet

    rows = iter(dataset)
    for file in local:
        count = pyarrow.parquet.ParquetFile(file).metadata.num_rows
        for number, row in enumerate(itertools.islice(rows, count), 1):
            yield f.Place(str(file), "row", number), row


def shown(path: Any) -> str:
    """A path, or a list of them, as a person reads it."""
    return path if isinstance(path, str) else ", ".join(map(str, path))


def load_arrow(config: DataConfig, path: Any, local: list[Path], split: str, key: str) -> Dataset:
    """A data set of the hub, of a folder, of Parquet files, or embedded."""
    import datasets

    if not local and not isinstance(path, str):
        raise PosttrainError(f"{key}={shown(path)}: a list names files")
    try:
        if local:
            return datasets.load_dataset("parquet", data_files=[str(file) for file in local], split="train")
        if path.startswith("embedded:"):
            from posttrain.data.embedded import imdb, squad

            return _pick((imdb if path == "embedded:imdb" else squad).load(), split, key, path)
        if path.startswith("reasoning_gym:"):
            from posttrain.data.embedded import gym

            return _pick(gym.load(path, config.args), split, key, path)
        if saved(path):
            found = datasets.load_from_disk(os.path.expanduser(path))
            return _pick(found, split, key, path) if isinstance(found, datasets.DatasetDict) else found
        return datasets.load_dataset(path, config.name, split=split, revision=config.revision)
    except PosttrainError:
        raise
    except Exception as error:
        raise PosttrainError(f"{key}={shown(path)}: {explain(error, shown(path), split)}") from error


def saved(path: str) -> bool:
    """Whether `path` is a folder that `datasets` saved."""
    folder = Path(os.path.expanduser(path))
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def held_out_split(config: DataConfig) -> str:
    """The split of `data.eval_path`: a task's own for that, or the questions would be those that are trained on."""
    made = isinstance(config.eval_path, str) and config.eval_path.startswith("reasoning_gym:")
    return config.eval_split or ("test" if made else "train")


def has_splits(path: Any) -> bool:
    """Whether split names mean anything; files, or one saved data set, would be their own held-out data."""
    if not isinstance(path, str) or f.resolve(path):
        return False
    return not (Path(os.path.expanduser(path)) / "state.json").is_file()


def _pick(splits: Any, split: str, key: str, path: str) -> Dataset:
    if split not in splits:
        raise PosttrainError(f"{key}={path}: no split {split}; there are {', '.join(splits)}")
    return splits[split]


def explain(error: Exception, path: str, split: str) -> str:
    """What an error of `datasets` means for who named the path."""
    from posttrain.hub import explain

    if known := explain(error, path, "data set"):
        return known
    if isinstance(error, ValueError) and "BuilderConfig" in str(error):
        return f"{str(error).splitlines()[0]}; choose one with data.name=NAME"
    if isinstance(error, ValueError) and "split" in str(error).lower():
        return f"no split {split} ({str(error).splitlines()[0]}); choose with data.split and data.eval_split"
    cause = error.__cause__ or error
    return f"cannot be read: {str(cause).splitlines()[0] if str(cause) else type(cause).__name__}"
