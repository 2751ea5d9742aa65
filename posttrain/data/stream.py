"""Streaming of rows during training: `data.streaming=true`, for data larger than memory and disk.

Rows are converted and adapted in batches of `BATCH`, by the same code as a data set that is read as a whole, and
shuffled within a buffer of `BUFFER`. The order depends on the files alone, so a run that continues skips exactly the
rows that it has seen.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import DataConfig
from posttrain.data import arrow_rows
from posttrain.data import files as f
from posttrain.data.columns import EXTRA_TRL_COLUMNS, PAIR_FACTS, TRL_COLUMNS, with_template_options
from posttrain.data.reading import Rows, RowSource, display_path, open_files, open_rows, read
from posttrain.data.row import INDEX_COLUMN, Place, RowError
from posttrain.data.skipped import Skipped, message
from posttrain.data.split import Split, config_for_path, eval_config, first_rows
from posttrain.data.store import folders, store, temporary_file
from posttrain.data.trainer_rows import TrainerRows, for_trainer, to_trainer
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import IterableDataset

    from posttrain.data.rendering import Rendering

STREAMABLE = ("text", "pairs")
COMPARISON_FORMATS = ("ultrafeedback", "rankings", "ratings")
BATCH, BUFFER, SEED = 256, 1000, 0


def check(config: DataConfig, kind: str, max_steps: int, job: str) -> Iterator[str]:
    """What cannot be streamed, before anything is read."""
    if f.built_in(config.path):
        yield f"data.path={config.path}: is made here, as a whole; set data.streaming=false"
    elif isinstance(config.path, str) and arrow_rows.is_saved_dataset(config.path):
        yield f"data.path={config.path}: a folder saved by `datasets` is not streamed; set data.streaming=false"
    if job != "train":
        yield f"data.streaming=true: job={job} reads its rows as a whole; set it to false"
    elif (reads := trainers.of(kind).reads) not in STREAMABLE:
        why = "mixes good and bad answers over all rows" if reads == "labels" else "draws its prompts from all rows"
        yield f"data.streaming=true: {kind} {why}; set it to false, or choose from sft, reward, dpo"
    if job == "train" and max_steps <= 0:
        yield "data.streaming=true: how long a stream is, is unknown; set trainer.args.max_steps=N"
    if 0 < config.eval_size < 1 and not config.eval_path:
        yield (
            f"data.eval_size={config.eval_size:g}: a share of a stream is unknown; set the number of first rows to "
            "hold out, or data.eval_path, or 0"
        )
    if config.eval_split and not config.eval_path:
        yield (
            f"data.eval_split={config.eval_split}: not for streams; leave it out, and set the number of first rows to "
            "hold out (data.eval_size), or data.eval_path"
        )
    for name in ("mix", "min_score", "max_train_rows"):
        if getattr(config, name):
            yield f"data.{name}: not for streams; leave it out, or set data.streaming=false"


@dataclass
class Stream:
    """The source of the rows. It holds settings only, so that `datasets` can send it to other processes."""

    config: DataConfig
    kind: str
    held: int
    skipped: Skipped
    template: Rendering | None = None
    columns: list[str] = field(default_factory=list)

    def __call__(self) -> Iterator[dict[str, Any]]:
        self.skipped.clear()
        source = self.opened()
        rest = itertools.islice(self.fitting(source), self.held, None)
        while batch := list(itertools.islice(rest, BATCH)):
            with _files_removed():
                rows = list(
                    with_template_options(to_trainer(_stored(batch, source, self.config), self.config, self.kind))
                )
            # Other columns are for reward functions, which no streaming trainer has; their types may vary.
            for row in rows:
                self.check_columns(row)
                yield {name: row.get(name, {} if name == "chat_template_kwargs" else None) for name in self.columns}

    def check_columns(self, row: dict[str, Any]) -> None:
        """Raise `PosttrainError` for a value that training needs, in a column that the first rows do not have."""
        names = [name for name in ("chat_template_kwargs", *PAIR_FACTS) if name not in self.columns]
        late = [name for name in names if row.get(name) not in (None, {})]  # a weight may be 0
        if late:
            raise PosttrainError(
                f"data.path={display_path(self.config.path)}: the column {late[0]} comes after the first rows, which "
                "say what columns a stream has; put a row with it first, or set data.streaming=false"
            )

    def opened(self) -> RowSource:
        return _source(config_for_path(self.config, self.config.path, self.config.split), self.kind, self.template)

    def fitting(self, source: RowSource) -> Iterator[dict[str, Any]]:
        for place, row in source.rows():
            try:
                if isinstance(row, RowError):
                    raise row
                made = source.convert(row)
                source.convert.check(made)
                made.pop(INDEX_COLUMN, None)
                yield made
            except RowError as row_error:
                if self.config.on_error == "stop":
                    fix = "fix it, or leave such rows out with data.on_error=skip"
                    where = f"data.path={display_path(self.config.path)}"
                    raise PosttrainError(f"{where}: a row does not fit; {fix}\n  {message(place, row_error)}") from None
                self.skipped.add(place, row_error, row)


def load(config: DataConfig, kind: str, template: Rendering | None) -> tuple[IterableDataset, TrainerRows]:
    """The stream of training rows; its first rows, and held-out ones."""
    from datasets import Features, IterableDataset, Value

    held = 0 if config.eval_path else int(config.eval_size)
    stream = Stream(config, kind, held, Skipped(temporary_file("skipped.jsonl")), template)
    source = stream.opened()
    if source.format in COMPARISON_FORMATS:
        raise PosttrainError(
            f"data.streaming=true: rows of the format {source.format} are compared with one another; set it to false"
        )
    first = list(itertools.islice(stream.fitting(source), held + BATCH))
    if len(first) <= held:
        raise PosttrainError(
            f"data.path={display_path(config.path)}: {len(first)} rows, and data.eval_size={held} of them are "
            "to be held out"
        )
    held_out = _stored(first[:held], source, config) if held else None
    if config.eval_path:
        held_out = read(eval_config(config), "data.eval_path", kind, None, template)
    how = "file" if config.eval_path else f"the first {held} rows" if held else "none"
    train = replace(_stored(first[held:], source, config), skipped=stream.skipped)
    held_out = held_out and first_rows(held_out, config.max_eval_rows, config, "held-out")
    made = for_trainer(Split(config, train, held_out, how), kind)
    taken = {*TRL_COLUMNS, *EXTRA_TRL_COLUMNS, *PAIR_FACTS}
    features = {name: feature for name, feature in made.train.features.items() if name in taken}
    features["tools"] = Value("string")  # the first rows may have none
    stream.columns = list(features)
    rows = IterableDataset.from_generator(stream, features=Features(features))
    return rows.shuffle(seed=SEED, buffer_size=BUFFER), made


@contextmanager
def _files_removed() -> Iterator[None]:
    """Remove the files that are stored in the block at its end; those of a whole stream would fill the disk."""
    with tempfile.TemporaryDirectory(dir=temporary_file("").parent) as folder:
        folders.append(folder)
        try:
            yield
        finally:
            folders.remove(folder)


def _source(config: DataConfig, kind: str, template: Rendering | None) -> RowSource:
    named = f"data.path={display_path(config.path)}"
    local = f.resolve(config.path)
    if local and f.kind(local[0]) != ".parquet":
        return open_files(config, local, kind, named, None, template)
    found = arrow_rows.load(config, local, "data.path", streaming=True)
    return open_rows(lambda: arrow_rows.rows(found, config.path, []), config, kind, None, template)


def _stored(rows: list[dict[str, Any]], source: RowSource, config: DataConfig) -> Rows:
    where = display_path(config.path)
    numbered = ((Place(where, "row", number), row) for number, row in enumerate(rows, 1))
    return Rows(store(numbered, lambda row: row, f"data.path={where}")[0], source.format)
