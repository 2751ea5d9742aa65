"""Reading a data path: detecting the format, converting each row, reporting rows that do not fit."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import DataConfig
from posttrain.data import columns as col
from posttrain.data import files as f
from posttrain.data.example import Example
from posttrain.data.formats import ACCEPTS, DETECTION_ROWS, PAIRS, PLAIN_COLUMNS, ROW_SETTINGS
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
    """Turns raw rows into our columns, and records which raw columns it saw, used and did not read."""

    make: Callable[[Mapping[str, Any]], Example]
    kind: str | None
    conversational: bool = False
    template: Rendering | None = None
    keep: bool = False
    needed: tuple[str, ...] = ()
    seen: dict[str, None] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    unread_keys: set[str] = field(default_factory=set)

    def columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of the row's `Example`; raises `RowError`."""
        self.seen.update(dict.fromkeys(row))
        col.check_media(row)
        example = self.make(row)
        if self.kind:
            col.check_prompt(example, self.kind)
        if self.conversational:
            from posttrain.data import messages

            example = messages.conversational(example)
        if opening := example.turns:
            from posttrain.data import messages, turns

            if self.kind:
                turns.check_learnable(example.messages, example.prompt, self.kind)
            example = messages.with_row_settings(example, opening, row)
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

    def unused(self) -> tuple[str, ...]:
        """The columns, and the keys of messages, that nothing reads: neither the trainer nor a reward function."""
        rest = [name for name in self.seen if name not in self.used and name != INDEX_COLUMN]
        if self.keep or self.kind is None or trainers.of(self.kind).samples_completions:
            read = {*self.extra_columns(rest, self.used)} - ROW_SETTINGS
        else:
            read = {name for columns in ACCEPTS[trainers.of(self.kind).reads] for name in columns} - col.TRL_COLUMNS
            read |= col.PAIR_FACTS if trainers.of(self.kind).weights_pairs else set()
        return (
            *(name for name in rest if name not in read),
            *(f"messages[].{key}" for key in sorted(self.unread_keys)),
        )

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
    key: str,
    kind: str | None,
    needed: tuple[str, ...] | None = None,
    template: Rendering | None = None,
) -> Rows:
    """The rows of `config.path` that trainer `kind` will learn from; with no `kind`, those that have prompts.

    `key` is the setting that names the path. `needed` are the TRL columns to check, by default those of `kind`; if it
    is given, all other columns are kept. Raises `PosttrainError` for rows that cannot be read or do not fit `kind`.
    """
    named, skip = f"{key}={display_path(config.path)}", config.on_error == "skip"
    local = f.resolve(config.path)
    if local and f.kind(local[0]) != ".parquet":
        source = open_files(config, local, kind, named, needed, template)
        try:
            return _as_rows(source, *store(source.rows(), source.convert, named, skip, source.convert.check))
        except RecursionError as error:
            raise PosttrainError(f"{named}: a row is nested too deeply") from error
    from posttrain.data import arrow_rows

    dataset = arrow_rows.load(config, local, key)
    source = open_rows(functools.partial(arrow_rows.rows, dataset, config.path, local), config, kind, needed, template)
    return _as_rows(source, *arrow_rows.store_with_types(dataset, source, named, skip))


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
    name = _detect(columns, first) if config.format == "auto" else config.format
    labelled = kind is not None and trainers.of(kind).reads == "labels"
    if labelled:
        from posttrain.data import labels

        labels.check_scale(row.get("label") for row in first)
    if name == "trl":
        make = _trl(config, kind, needed, columns, first)
    else:
        from posttrain.data import other_formats

        make = other_formats.maker(name, kind)
    if labelled and "label" in columns:
        make = functools.partial(labels.labelled, make)
    expected: tuple[str, ...] = ()
    if name != "trl":
        expected = other_formats.expected_columns(first, make, name, kind)
    convert = Converter(make, kind, config.conversational, template, keep=needed is not None, needed=expected)
    return RowSource(rows, name, convert)


def _detect(columns: list[str], first: list[dict[str, Any]]) -> str:
    """The name of the format, one of `formats.NAMES`; `trl` where no other is recognised."""
    if {*columns} <= PLAIN_COLUMNS and not any("Human:" in str(row.get("chosen")) for row in first):
        return "trl"
    from posttrain.data import detection

    return detection.detect({*columns}, first)


def _trl(
    config: DataConfig,
    kind: str | None,
    needed: tuple[str, ...] | None,
    columns: list[str],
    first: list[dict[str, Any]],
) -> Callable[[Mapping[str, Any]], Example]:
    """The function that makes an `Example` of a row in TRL's columns."""
    if needed is not None:
        needed = tuple(name for name in needed if name in columns)
    elif kind is not None and first:
        needed = tuple(name for name in col.choose_columns(columns, kind) if name in col.TRL_COLUMNS)
    else:
        sets: tuple[tuple[str, ...], ...] = (PAIRS, ("messages",), ("prompt",))
        needed = next((one for one in sets if {*one} <= {*columns}), ())
    if config.conversational and "prompt" not in columns and needed == ("text",):
        raise PosttrainError(
            f"data.conversational=true: needs a column prompt, and the data has {', '.join(columns)}; "
            "map it, ours to theirs: 'data.columns={prompt: question}'"
        )
    # Answers, as text, may repeat their prompt. A single one may do so by chance, so the majority decides.
    answers = [name for name in needed if name in ("completion", *PAIRS)]
    asked = [row for row in first if isinstance(row.get("prompt"), str) and row["prompt"].strip()]
    repeated = sum(all(str(row.get(name)).startswith(row["prompt"]) for name in answers) for row in asked)
    return functools.partial(trl, needed=needed, repeated=2 * repeated > len(asked), prompted="prompt" in columns)


def _as_rows(source: RowSource, rows: Dataset, skipped: Skipped | None) -> Rows:
    read = len(rows) + (skipped.count if skipped else 0)
    return Rows(rows, source.format, read, skipped, source.convert.unused())
