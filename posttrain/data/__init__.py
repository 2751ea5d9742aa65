"""Training and held-out data of a run, in the columns its trainer needs."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config import DataConfig
from posttrain.data.formats import (
    ACCEPTS,
    PAIRS,
    PROMPTED,
    SCORES,
    adapt,
    check_rows,
    converse,
    prompt_of,
    rename,
)
from posttrain.errors import PosttrainError
from posttrain.rundir import data_file

if TYPE_CHECKING:
    from datasets import Dataset

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
# A data set without a held-out split is divided with this seed, whatever the training seed is.
SPLIT_SEED = 0


@dataclass(frozen=True)
class Data:
    """Rows for training and, unless `eval_size` is 0, held-out rows; `prompts` are held-out rows for the probe."""

    train: Dataset
    eval: Dataset | None
    prompts: Dataset | None
    source: dict[str, Any]


def load(config: DataConfig, kind: str) -> Data:
    """Load, split and adapt the data of a run for the trainer `kind`; raises `PosttrainError` for bad input."""
    parts, how = _divide(config)
    train, _ = _adapted(parts["train"], kind, config.path)
    eval_rows = prompts = None
    if "held-out" in parts:
        eval_rows, shaped = _adapted(parts["held-out"], kind, config.path)
        prompts = _prompts_for(kind, shaped)
    return Data(train, eval_rows, prompts, _source(config, how, train, eval_rows))


def load_held_out(config: DataConfig, kind: str) -> Data:
    """The held-out rows alone, to evaluate on (`train` is `eval`); KTO gets pairs as pairs."""
    parts, how = _divide(config)
    if "held-out" not in parts:
        raise PosttrainError("data.eval_size=0: nothing is held out; set it, or data.eval_split or data.eval_path")
    pairs = {*parts["held-out"].rows.column_names, *parts["held-out"].config.columns} >= set(PAIRS)
    rows, shaped = _adapted(parts["held-out"], "dpo" if kind == "kto" and pairs else kind, config.path)
    return Data(rows, rows, _prompts_for(kind, shaped), _source(config, how, rows, rows))


def load_prompts(config: DataConfig, kind: str, split: str) -> tuple[Dataset, dict[str, Any]]:
    """The prompts of `split` (train, eval), as trainer `kind` and its probe see them, each row once; and their source.

    Other columns stay, for reward functions. Raises `PosttrainError` where nothing is held out, or has a prompt.
    """
    parts, how = _divide(config)
    name = "train" if split == "train" else "held-out"
    if name not in parts:
        raise PosttrainError(f"sample.split={split}: nothing is held out; set data.eval_size or data.eval_split")
    found = _prompts_for(kind, _shape(parts[name]))
    if found is None:
        raise PosttrainError(
            f"data.path={config.path}: no prompts to sample for: it has no column prompt, messages, or chosen and "
            "rejected; 'data.columns={prompt: THEIRS}' maps one"
        )
    check_rows(found, name, config.path)
    found = found.remove_columns([column for column in found.column_names if column in SCORES])
    # Sampled rows repeat their prompt, and so do data sets with several answers to one.
    first: dict[str, int] = {}
    for index, row in enumerate(found):
        first.setdefault(repr(row), index)
    found = found.select(list(first.values()))
    return found, _source(config, how, found, None)


def _adapted(part: _Part, kind: str, path: str) -> tuple[Dataset, Dataset]:
    """Rows as the trainer `kind` takes them, and as they were before."""
    rows = _shape(part)
    ready = adapt(rows, kind)
    check_rows(ready, part.name, path)
    return ready, rows


def _prompts_for(kind: str, rows: Dataset) -> Dataset | None:
    # A trainer of prompts is probed on prompts as it gets them.
    return _prompts(adapt(rows, kind) if ACCEPTS[kind][0] == ("prompt",) else rows)


@dataclass(frozen=True)
class _Part:
    """Rows of one split as they were stored, and the config that says what they mean."""

    rows: Dataset
    config: DataConfig
    limit: int | None
    name: str


def _divide(config: DataConfig) -> tuple[dict[str, _Part], str]:
    """The stored rows by `train` and, unless nothing is, `held-out`; and how the latter were held out."""
    own = _reading(config, config.path)
    train, held_out, other = _load_split(own, own.path, own.split, "data.path"), None, own
    if config.eval_path:
        other = _reading(config, config.eval_path)
        held_out, how = _load_split(other, other.path, other.eval_split or "train", "data.eval_path"), "file"
    elif own.eval_split and _has_splits(own.path):
        held_out, how = _load_split(own, own.path, own.eval_split, "data.path"), own.eval_split
    elif config.eval_size:
        size: float | int = config.eval_size if config.eval_size < 1 else int(config.eval_size)
        if len(train) < 2:
            raise PosttrainError(f"data.path={config.path}: {len(train)} rows cannot be split; set data.eval_size=0")
        train, held_out = hold_out(train, size, own.columns)
        how = f"{config.eval_size} of {config.split}"
    else:
        how = "none"
    if config.min_score is not None:
        # After the split: rows held out at one threshold are not trained on at another.
        train = _scored(train, config, "train")
        held_out = _scored(held_out, config, "held-out") if held_out is not None and not config.eval_path else held_out
    parts = {"train": _Part(train, own, config.max_train_rows, "train")}
    if held_out is not None:
        parts["held-out"] = _Part(held_out, other, config.max_eval_rows, "held-out")
    return parts, how


def _reading(config: DataConfig, path: str) -> DataConfig:
    """How to read `path`: a data set made by job=sample has TRL's columns, whatever the recipe's own data has."""
    file = data_file(path)
    if file == path:
        return replace(config, path=path)
    return replace(
        config, path=file, name=None, revision=None, split="train", eval_split=None, columns={}, conversational=False
    )


def _shape(part: _Part) -> Dataset:
    """The first rows, under our column names, as conversations where the config wants them."""
    rows = part.rows if part.limit is None else part.rows.select(range(min(part.limit, len(part.rows))))
    rows = rename(rows, part.config.columns)
    if not len(rows):
        raise PosttrainError(f"data.path={part.config.path}: no rows for {part.name}")
    return converse(rows) if part.config.conversational else rows


def hold_out(rows: Dataset, size: float | int, columns: Mapping[str, str]) -> tuple[Dataset, Dataset]:
    """Rows for training and held-out ones: a share below 1 or a number, drawn with `SPLIT_SEED`.

    Where rows repeat their prompt, as sampled completions do, whole prompts are held out until there are `size` rows:
    a prompt that was trained on says nothing about others. `columns` maps our names to those of `rows`. Raises
    `PosttrainError` where nothing would be left for either.
    """
    if not 0 < (size * len(rows) if size < 1 else size) <= len(rows) - 1:
        raise PosttrainError(
            f"data.eval_size={size:g}: of {len(rows)} rows that leaves none to train on; set a smaller share or number"
        )
    theirs = [column for name in PROMPTED if (column := columns.get(name, name)) in rows.column_names]
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows.select_columns(theirs)):
        ours = {name: row[column] for name in PROMPTED if (column := columns.get(name, name)) in row}
        if (prompt := prompt_of(ours)) is not None:
            groups.setdefault(repr(prompt), []).append(index)
    if len(groups) < 2 or len(groups) == len(rows):
        parts = rows.train_test_split(test_size=size, seed=SPLIT_SEED)
        return parts["train"], parts["test"]
    keys = list(groups)
    random.Random(SPLIT_SEED).shuffle(keys)
    wanted = math.ceil(size * len(rows)) if size < 1 else size
    held_out: list[int] = []
    while len(held_out) < wanted and len(keys) > 1:
        held_out += groups[keys.pop()]
    train = [index for key in keys for index in groups[key]]
    random.Random(SPLIT_SEED).shuffle(train)
    return rows.select(train), rows.select(held_out)


def _scored(rows: Dataset, config: DataConfig, name: str) -> Dataset:
    """The rows whose `score` is at least `data.min_score`; rows without a score are none of them."""
    least, key = config.min_score, f"data.min_score={config.min_score:g}"
    assert least is not None
    if "score" not in rows.column_names:
        raise PosttrainError(
            f"{key}: the data has no column score, but {', '.join(rows.column_names)}; job=sample with a reward and "
            "sample.select=all, best, top or threshold writes one"
        )
    scores = rows["score"]
    if not all(score is None or isinstance(score, (int, float)) for score in scores):
        raise PosttrainError(f"{key}: the column score holds other things than numbers")
    kept = [index for index, score in enumerate(scores) if score is not None and score >= least]
    if not kept:
        best = max((score for score in scores if score is not None and score == score), default=None)
        highest = "none has a score" if best is None else f"the highest score is {best:g}"
        mend = "" if name == "train" else ", or hold out more (data.eval_size, data.eval_path)"
        raise PosttrainError(f"{key}: none of the {len(rows)} rows for {name} is left, {highest}; lower it{mend}")
    return rows.select(kept)


def _source(config: DataConfig, how: str, train: Dataset, held_out: Dataset | None) -> dict[str, Any]:
    return {
        "path": config.path,
        "name": config.name,
        "revision": config.revision,
        "split": config.split,
        "held_out": how,
        "split_seed": SPLIT_SEED,
        "train_rows": len(train),
        "held_out_rows": len(held_out) if held_out is not None else 0,
        "fingerprint": fingerprint(train),
    }


def fingerprint(dataset: Dataset) -> str:
    """A digest of the rows themselves (16 hex digits): equal data has it equal on every machine."""
    import xxhash

    digest = xxhash.xxh64()
    for batch in dataset.select_columns(sorted(dataset.column_names)).with_format("arrow").iter(1000):
        for column in batch.to_pydict().values():
            digest.update(repr(column).encode())
    return digest.hexdigest()


def _load_split(config: DataConfig, path: str, split: str, key: str) -> Dataset:
    import datasets

    if path.startswith("embedded:"):
        from posttrain.data import imdb, squad

        return _pick((imdb if path == "embedded:imdb" else squad).load(), split, key, path)
    local = Path(os.path.expanduser(path))
    try:
        if local.is_file():
            return datasets.load_dataset(BUILDERS[local.suffix], data_files=str(local), split="train")
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            saved = datasets.load_from_disk(str(local))
            return _pick(saved, split, key, path) if isinstance(saved, datasets.DatasetDict) else saved
        return datasets.load_dataset(path, config.name, split=split, revision=config.revision)
    except Exception as error:
        raise PosttrainError(f"{key}={path}: {_explain(error, path, split)}") from error


def _has_splits(path: str) -> bool:
    """Whether split names mean anything; one file, or one saved data set, would be its own held-out data."""
    local = Path(os.path.expanduser(path))
    return not local.is_file() and not (local / "state.json").is_file()


def _pick(splits: Any, split: str, key: str, path: str) -> Dataset:
    if split not in splits:
        raise PosttrainError(f"{key}={path}: no split {split}; there are {', '.join(splits)}")
    return splits[split]


def _explain(error: Exception, path: str, split: str) -> str:
    from posttrain.hub import explain

    if known := explain(error, path, "data set"):
        return known
    if isinstance(error, ValueError) and "BuilderConfig" in str(error):
        return f"{str(error).splitlines()[0]}; choose one with data.name=NAME"
    if isinstance(error, ValueError) and "split" in str(error).lower():
        return f"no split {split} ({str(error).splitlines()[0]}); choose with data.split and data.eval_split"
    cause = error.__cause__ or error
    return f"cannot be read: {str(cause).splitlines()[0] if str(cause) else type(cause).__name__}"


def _prompts(held_out: Dataset) -> Dataset | None:
    """Held-out prompts with their other columns; `None` for plain text, which has no prompt."""
    from posttrain.data.formats import TRL_COLUMNS

    columns = set(held_out.column_names)
    if set(PAIRS) <= columns:
        held_out = adapt(held_out, "dpo")
    elif "messages" in columns:
        # UltraChat has the first turn as text beside the conversation: the conversation is what is trained on.
        held_out = held_out.map(lambda row: {"prompt": row["messages"][:-1]})
        held_out = held_out.filter(lambda row: bool(row["prompt"]))
    elif "prompt" not in columns:
        return None
    return held_out.remove_columns([c for c in held_out.column_names if c in TRL_COLUMNS and c != "prompt"])
