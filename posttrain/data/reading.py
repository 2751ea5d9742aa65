"""Reading a data path: detecting the format, converting each row, reporting rows that do not fit."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import DataConfig
from posttrain.data import columns as col
from posttrain.data import files as f
from posttrain.data.example import Example
from posttrain.data.formats import ACCEPTS, DETECTION_ROWS, PAIRS, ROW_SETTINGS, detect, is_scored
from posttrain.data.row import INDEX_COLUMN, Row, RowError, display_path
from posttrain.data.store import store
from posttrain.data.trl_format import trl
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset

    from posttrain.data.rendering import Rendering
    from posttrain.data.skipped import Skipped


@dataclass
class Converter:
    """Turns raw rows into our columns, and records which raw columns it used, left out and kept."""

    make: Callable[[Mapping[str, Any]], Example]
    kind: str | None
    conversational: bool = False
    template: Rendering | None = None
    keep: bool = False
    labelled: bool = False
    needed: tuple[str, ...] = ()
    used: set[str] = field(default_factory=set)
    unread_keys: set[str] = field(default_factory=set)

    def example(self, row: Mapping[str, Any]) -> Example:
        made = self.make(row)
        if not self.labelled:
            return made
        from posttrain.data.labels import with_label

        return with_label(made, row.get("label"))

    def columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of the row's `Example`; raises `RowError`."""
        col.check_media(row)
        example = self.example(row)
        col.check_learnable(example, self.kind)
        if self.conversational:
            example = example.conversational()
        if example.turns:
            from posttrain.data import messages

            example = messages.with_row_settings(example, row)
            for name in example.used:
                self.unread_keys |= messages.unread(row.get(name))
        self.used.update(example.used)
        made = example.columns(self.template.reasoning if self.template else "reasoning_content")
        if self.template is not None:
            for name in ("text", "prompt"):
                if isinstance(made.get(name), str):
                    made[name] = self.template.without_bos(made[name])
        if self.kind and trainers.of(self.kind).weights_pairs and made.keys() >= {*PAIRS}:
            col.check_weight(row)
        if missing := [name for name in self.needed if name not in made]:
            raise RowError(missing[0], "is missing, and other rows have it")
        return made

    def extra_columns(self, names: Any, used: Any) -> list[str]:
        """The other columns that are kept."""
        return [n for n in names if n not in used] if self.keep else col.extra_columns(names, used, self.kind)

    def unused(self, names: Any) -> list[str]:
        """The columns, and the keys of messages, that nothing reads: neither the trainer nor a reward function."""
        rest = [name for name in names if name not in self.used and name != INDEX_COLUMN]
        if self.keep or self.kind is None or trainers.of(self.kind).samples_completions:
            read = {*self.extra_columns(rest, self.used)} - ROW_SETTINGS
        else:
            read = {name for columns in ACCEPTS[trainers.of(self.kind).reads] for name in columns} - col.TRL_COLUMNS
            read |= col.PAIR_FACTS if trainers.of(self.kind).weights_pairs else set()
        return [name for name in rest if name not in read] + [f"messages[].{key}" for key in sorted(self.unread_keys)]

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        made = self.columns(row)
        return {**made, **{name: row[name] for name in self.extra_columns(row, self.used) if name not in made}}

    def check(self, made: Mapping[str, Any]) -> None:
        if self.template is not None:
            self.template.check(made)


@dataclass(frozen=True)
class RowSource:
    """An opened data path: its rows in order, the format, and the converter of a row (which raises `RowError`)."""

    rows: Callable[[], Iterator[Row]]
    format: str
    convert: Converter


@dataclass(frozen=True)
class Rows:
    """Rows as read; `format` is the source's, `read` counts its rows, `unused` are the columns that were dropped."""

    rows: Dataset
    format: str
    read: int | None = None
    skipped: Skipped | None = None
    unused: tuple[str, ...] = ()


def read(
    config: DataConfig,
    path: Any,
    split: str,
    key: str,
    kind: str | None,
    needed: tuple[str, ...] | None = None,
    template: Rendering | None = None,
) -> Rows:
    """The rows of `path` that trainer `kind` will learn from; with no `kind`, those that have prompts.

    `key` is the setting that names the path. `needed` are the TRL columns to check, by default those of `kind`; if it
    is given, all other columns are kept. Raises `PosttrainError` for rows that cannot be read or do not fit `kind`.
    """
    named = f"{key}={display_path(path)}"
    local = f.resolve(path)
    if local and f.kind(local[0]) != ".parquet":
        source = open_files(config, local, kind, named, needed, template)
        return _store_rows(source, config, named)
    from posttrain.data.arrow_rows import arrow_rows, load_arrow

    dataset = load_arrow(config, path, local, split, key)
    if config.columns:
        from posttrain.data.renaming import rename_dataset

        dataset = rename_dataset(dataset, config.columns)
    if not len(dataset):
        raise PosttrainError(f"{named}: no rows")
    source = open_rows(functools.partial(arrow_rows, dataset, path, local), config, kind, needed, template)
    return _store_with_types(dataset, source, config, named)


def open_files(
    config: DataConfig,
    paths: list[Path],
    kind: str | None,
    named: str,
    needed: tuple[str, ...] | None = None,
    template: Rendering | None = None,
) -> RowSource:
    """The rows of text files, their columns renamed."""

    def rows() -> Iterator[Row]:
        return itertools.chain.from_iterable(f.rows(path, config.columns) for path in paths)

    try:
        if config.columns:
            from posttrain.data.renaming import rename_rows

            return open_rows(rename_rows(rows, config.columns), config, kind, needed, template)
        return open_rows(rows, config, kind, needed, template)
    except PosttrainError as error:
        message = str(error)
        raise PosttrainError(message if message.startswith(("data.", "trainer.")) else f"{named}: {message}") from error


def open_rows(
    rows: Callable[[], Iterator[Row]],
    config: DataConfig,
    kind: str | None,
    needed: tuple[str, ...] | None = None,
    template: Rendering | None = None,
) -> RowSource:
    """Detect the format from the first rows, and check that `kind` can learn from it (see `read`)."""
    first = [row for _, row in itertools.islice(rows(), DETECTION_ROWS) if isinstance(row, dict)]
    columns = list(dict.fromkeys(name for row in first for name in row if name != INDEX_COLUMN))
    name = detect(columns, first) if config.format == "auto" else config.format
    more: dict[str, Any] = {
        "kind": kind,
        "conversational": config.conversational,
        "template": template,
        "keep": needed is not None,
    }
    if kind and trainers.of(kind).reads == "labels":
        from posttrain.data.labels import check_scale

        check_scale(row.get("label") for row in first)
        more["labelled"] = "label" in columns
    if name != "trl":
        from posttrain.data.other_formats import FORMATS

        convert = Converter(FORMATS[name], **more)
        convert.needed = _needed(first, convert, name, kind)
        return RowSource(rows, name, convert)
    if needed is not None:
        needed = tuple(name for name in needed if name in columns)
    elif kind is not None and first:
        needed = tuple(name for name in col.choose_columns(columns, kind) if name in col.TRL_COLUMNS)
    else:
        sets: tuple[tuple[str, ...], ...] = (PAIRS, ("messages",), ("prompt",))
        needed = next((one for one in sets if set(one) <= set(columns)), ())
    if config.conversational and "prompt" not in columns and needed == ("text",):
        raise PosttrainError(
            f"data.conversational=true: needs a column prompt, and the data has {', '.join(columns)}; "
            "map it, ours to theirs: 'data.columns={prompt: question}'"
        )
    repeated = _answers_repeat_prompt(first, needed)
    make = functools.partial(trl, needed=needed, repeated=repeated, prompted="prompt" in columns)
    return RowSource(rows, name, Converter(make, **more))


def _answers_repeat_prompt(first: list[dict[str, Any]], needed: tuple[str, ...]) -> bool:
    """Whether the answers, as text, repeat their prompt. A single one may do so by chance, so the majority decides."""
    names = [name for name in needed if name in ("completion", *PAIRS)]
    asked = [row for row in first if isinstance(row.get("prompt"), str) and row["prompt"].strip()]
    if not names or not asked:
        return False
    return 2 * sum(all(str(row.get(name)).startswith(row["prompt"]) for name in names) for row in asked) > len(asked)


def _needed(first: list[dict[str, Any]], convert: Converter, name: str, kind: str | None) -> tuple[str, ...]:
    """The TRL columns that every row must give, as the first readable rows do."""
    made: list[list[str]] = []
    for row in first:
        with suppress(RowError):
            made.append(list(convert.example(row).columns()))
    if not made or is_scored(made[0], name):
        return ()
    if kind is None:
        return next(one for one in (("messages",), ("prompt",)) if one[0] in made[0])
    accepted = ACCEPTS[trainers.of(kind).reads]
    found = next((needed for needed in accepted if any({*needed} <= {*columns} for columns in made)), None)
    return found or col.choose_columns(made[0], kind, name)


def _store_rows(source: RowSource, config: DataConfig, named: str) -> Rows:
    seen: dict[str, None] = {}

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        seen.update(dict.fromkeys(row))
        return source.convert(row)

    try:
        rows, skipped = store(source.rows(), convert, named, config.on_error == "skip", source.convert.check)
    except RecursionError as error:
        raise PosttrainError(f"{named}: a row is nested too deeply") from error
    return _as_rows(rows, source, skipped, seen)


def _store_with_types(dataset: Dataset, source: RowSource, config: DataConfig, named: str) -> Rows:
    """As `_store_rows`; columns that need no conversion keep the types that they have."""
    from datasets import concatenate_datasets

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        return {**source.convert.columns(row), INDEX_COLUMN: row[INDEX_COLUMN]}

    stored, skipped = store(source.rows(), convert, named, config.on_error == "skip", source.convert.check)
    numbers = stored[INDEX_COLUMN][:]
    stored = stored.remove_columns(INDEX_COLUMN)
    used = {*source.convert.used, *stored.column_names}
    rest = dataset.select_columns(source.convert.extra_columns(dataset.column_names, used))
    if not stored.column_names:
        stored = rest.select(numbers)
    elif rest.column_names:
        stored = concatenate_datasets([stored, rest if len(numbers) == len(rest) else rest.select(numbers)], axis=1)
    return _as_rows(stored, source, skipped, dataset.column_names)


def _as_rows(rows: Dataset, source: RowSource, skipped: Skipped | None, columns: Any) -> Rows:
    read = len(rows) + (skipped.count if skipped else 0)
    return Rows(rows, source.format, read, skipped, tuple(source.convert.unused(columns)))


def held_out_split(config: DataConfig) -> str:
    """The split of `data.eval_path`; for reasoning_gym it is `test`, whose questions are not trained on."""
    made = isinstance(config.eval_path, str) and config.eval_path.startswith("reasoning_gym:")
    return config.eval_split or ("test" if made else "train")


def has_splits(path: Any) -> bool:
    """Whether `path` has named splits: not for files or a single saved data set."""
    if not isinstance(path, str) or f.resolve(path):
        return False
    return not (Path(os.path.expanduser(path)) / "state.json").is_file()
