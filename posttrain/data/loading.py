"""Training and held-out data of a run, in the columns its trainer needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import DataConfig
from posttrain.data.columns import TRL_COLUMNS, with_template_options
from posttrain.data.formats import ABOUT, PAIRS
from posttrain.data.reading import display_path
from posttrain.data.split import SPLIT_SEED, split_rows, take
from posttrain.data.trainer_rows import TrainerRows, for_trainer
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from posttrain.data.rendering import Rendering
    from posttrain.data.skipped import Skipped

# Number of first rows that stand for all of them, where looking at every row would take long.
FIRST_ROWS = 256
# The columns that trainers learn from, as the plan lists them.
LEARNT = ("messages", "text", "prompt", "completion", "chosen", "rejected")


@dataclass(frozen=True)
class Data:
    """Rows for training and, unless `eval_size` is 0, held-out rows; `prompts` are held-out rows for the probe.

    `first` are the first rows of `train`, which may be a stream. `skipped` did not fit.
    """

    train: Dataset | IterableDataset
    eval: Dataset | None
    prompts: Dataset | None
    source: dict[str, Any]
    first: Dataset
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def rows(self) -> int | None:
        """The number of training rows; `None` for a stream."""
        return self.source["train_rows"]

    @property
    def weighted(self) -> bool:
        """Whether the rows are pairs with weights (see `posttrain.training.pair_weights`)."""
        return {"weight", *PAIRS} <= {*self.first.column_names}

    def held_out_prompts(self, count: int = 32) -> list[dict[str, Any]]:
        """The first held-out prompts, with the chosen answer of pairs, to compare models on later."""
        pairs = self.eval is not None and {"prompt", "chosen"} <= set(self.eval.column_names)
        held_out = self.eval if pairs else self.prompts
        if held_out is None:
            return []
        rows = held_out.select_columns(["prompt", "chosen"] if pairs else ["prompt"])
        return [rows[i] for i in range(min(count, len(rows)))]

    @property
    def skipped_files(self) -> list[Path]:
        """The files that name the rows which were left out."""
        return [one.path for one in self.skipped if one.count]

    def describe(self, kept: bool = True) -> dict[str, str]:
        """The plan's lines on the rows: their formats, the shares of a mixture, what is left out.

        `kept`: the job lists the rows that are left out in its run directory.
        """
        parts, row = self.source["parts"], self.first[0]

        def each(shown: Callable[[dict[str, Any]], str]) -> list[str]:
            """What is shown of the parts, with their names; "" leaves one out."""
            return [f"{name}: {text}" if name else text for name, part in parts.items() if (text := shown(part))]

        form = "conversations" if any(isinstance(row.get(name), list) for name in LEARNT) else "text"
        columns = f"{', '.join(name for name in (*LEARNT, 'label') if name in row)} ({form})"
        found = {"columns": "; ".join([columns, *each(_read_as)])}
        if len(parts) > 1:
            shares = (f"{name} {part['share']:.1%} ({part['train_rows']} rows)" for name, part in parts.items())
            found["mixture"] = ", ".join(shares)
        if self.weighted:
            weights = [1.0 if weight is None else weight for weight in self.first["weight"]]
            least, most = min(weights), max(weights)
            found["pairs"] = f"weighted by their column weight, {least:.3g} to {most:.3g} in the first rows"
        if "label" in row and self.rows:
            good = sum(self.train["label"])
            found["labels"] = f"{good} good (label true or 1), {self.rows - good} bad (false or 0)"
        skipped = sum(part["skipped"] for part in parts.values())
        if taken := each(lambda part: "" if part["read"] is None else f"{part['read']} read"):
            left_out = [f"{skipped} skipped"] if skipped else []
            used = [f"{self.source['held_out_rows']} held out", f"{self.rows} trained on"]
            found["rows"] = ", ".join([*taken, *left_out, *used])
        if "overlap" in self.source:
            from posttrain.data import overlap

            found |= overlap.note(self.source)
        if unused := each(lambda part: ", ".join(part["unused"])):
            found["unused"] = f"columns {'; '.join(unused)}"
        if skipped:
            where = ", kept in skipped.jsonl with the reasons" if kept else ""
            found["skipped"] = f"{skipped} rows that do not fit{where}"
        return found


def load(config: DataConfig, kind: str, template: Rendering | None = None) -> Data:
    """Load, split, adapt and mix the data of a run for the trainer `kind`; raises `PosttrainError` for bad input.

    With a `template`, rows that the chat template refuses are bad input too.
    """
    if config.streaming:
        from posttrain.data import stream

        rows, made = stream.load(config, kind, template)
        found = _gathered(config, {"": made})
        source = {**found.source, "train_rows": None}
        return Data(rows, found.eval, found.prompts, source, found.train, found.skipped)
    return _gathered(config, load_parts(config, lambda part: for_trainer(split_rows(part, kind, None, template), kind)))


def load_parts(config: DataConfig, make: Callable[[DataConfig], TrainerRows | None]) -> dict[str, TrainerRows]:
    """Name -> rows of each part of the mixture, as `make` reads it; parts for which it returns None are left out.

    Without a mixture there is one part, with an empty name.
    """
    if config.streaming:
        raise PosttrainError("data.streaming=true: only for training; this job reads its rows as a whole")
    if config.mix:
        from posttrain.data import mix

        made = mix.load_parts(config, make)
    else:
        made = {"": make(config)}
    return {name: found for name, found in made.items() if found is not None}


def check_learnable(kind: str, data: Data) -> None:
    """Raise `PosttrainError` for rows that are each valid, but together teach or measure nothing."""
    path, first = f"data.path={data.source['path']}", data.first
    if "overlap" in data.source:
        from posttrain.data import overlap

        overlap.check(data.source)
    if trainers.of(kind).reads == "labels" and len(set(data.train["label"][:])) == 1:
        label = str(data.train["label"][0]).lower()
        raise PosttrainError(
            f"{path}: all labels are {label}; kto learns from good and bad answers: add the others, or train with sft "
            "on the good ones"
        )
    if {*PAIRS} <= {*first.column_names} and all(row["chosen"] == row["rejected"] for row in first):
        raise PosttrainError(f"{path}: chosen and rejected are the same in every row, so nothing is learnt from them")
    held_out = data.eval
    if held_out is None or not len(held_out):
        return
    for name in sorted(TRL_COLUMNS & {*first.column_names}):
        if name in held_out.column_names and isinstance(held_out[0][name], str) != isinstance(first[0][name], str):
            raise PosttrainError(
                f"{path}: {name} is text in one and a conversation in the other of training and held-out rows; "
                "data.conversational=true makes both conversations"
            )


def concatenate(rows: dict[str, Dataset]) -> Dataset:
    if len(rows) == 1:
        return next(iter(rows.values()))
    from posttrain.data import mix

    return mix.join(rows)


def _gathered(config: DataConfig, made: dict[str, TrainerRows]) -> Data:
    train, wanted = concatenate({name: one.train for name, one in made.items()}), None
    if config.mix:
        from posttrain.data import mix

        train, wanted = mix.draw(config, train, [len(one.train) for one in made.values()])
    train = with_template_options(train)
    held_out = joined(config, {name: one.held_out for name, one in made.items()})
    held_out = held_out and with_template_options(held_out)
    found = Data(
        train,
        held_out,
        joined(config, {name: one.prompts for name, one in made.items()}),
        source_of(config, made, train, held_out, wanted),
        take(train, FIRST_ROWS),
        [skipped for one in made.values() for skipped in one.divided.skipped],
    )
    if held_out is not None and any(" of " not in one.divided.how for one in made.values()):
        from posttrain.data import overlap  # held-out rows drawn from the training rows have none

        found.source["overlap"] = overlap.count(train, held_out)
    if found.weighted and not any(weight is None or weight for weight in train["weight"]):
        raise PosttrainError(f"data.path={found.source['path']}: column weight: all are 0, so nothing is learned")
    return found


def joined(config: DataConfig, rows: dict[str, Dataset | None]) -> Dataset | None:
    """The held-out rows of all parts, shuffled if there are several parts, and cut to `max_eval_rows`."""
    some = {name: one for name, one in rows.items() if one is not None and len(one)}
    if not some:
        return None
    found = concatenate(some)
    return take(found.shuffle(seed=SPLIT_SEED) if len(some) > 1 else found, config.max_eval_rows)


def source_of(
    config: DataConfig,
    made: dict[str, TrainerRows],
    train: Dataset,
    held_out: Dataset | None,
    wanted: list[int] | None = None,
) -> dict[str, Any]:
    counts = wanted or [len(one.train) for one in made.values()]
    parts: dict[str, dict[str, Any]] = {
        name: {
            "path": display_path(one.divided.config.path),
            "format": one.divided.train.format,
            "detected": one.divided.config.format == "auto",
            "read": one.divided.train.read,
            "skipped": sum(skipped.count for skipped in one.divided.skipped),
            "unused": list(one.divided.train.unused),
            "train_rows": count,
            "share": count / max(sum(counts), 1),
        }
        for (name, one), count in zip(made.items(), counts, strict=True)
    }
    return {
        "path": ", ".join(dict.fromkeys(part["path"] for part in parts.values())),
        "name": config.name,
        "revision": config.revision,
        "split": config.split,
        "held_out": ", ".join(dict.fromkeys(one.divided.how for one in made.values())),
        "split_seed": SPLIT_SEED,
        "train_rows": len(train),
        "held_out_rows": len(held_out) if held_out is not None else 0,
        "parts": parts,
        "fingerprint": fingerprint(train),
    }


def _read_as(part: dict[str, Any]) -> str:
    """The format that the rows were read from, for the plan; "" for TRL's own columns."""
    if part["format"] == "trl" and part["detected"]:
        return ""
    return f"read as {part['format']}{'' if part['detected'] else ' (data.format)'}: {ABOUT[part['format']]}"


def fingerprint(dataset: Dataset) -> str:
    """A digest of the rows' content (16 hex digits); it is the same on every machine."""
    import xxhash

    digest = xxhash.xxh64()
    for batch in dataset.select_columns(sorted(dataset.column_names)).with_format("arrow").iter(1000):
        for column in batch.to_pydict().values():
            digest.update(repr(column).encode())
    return digest.hexdigest()
