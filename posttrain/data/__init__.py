"""Training and held-out data of a run, in the columns its trainer needs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config import DataConfig
from posttrain.data.formats import adapt, check_rows, converse, form, rename
from posttrain.errors import PosttrainError

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
    train = _load_split(config, config.path, config.split, "data.path")
    if config.eval_path:
        held_out, how = _load_split(config, config.eval_path, config.eval_split or "train", "data.eval_path"), "file"
    elif config.eval_split and _has_splits(config.path):
        held_out, how = _load_split(config, config.path, config.eval_split, "data.path"), config.eval_split
    elif config.eval_size:
        size: float | int = config.eval_size if config.eval_size < 1 else int(config.eval_size)
        if len(train) < 2:
            raise PosttrainError(f"data.path={config.path}: {len(train)} rows cannot be split; set data.eval_size=0")
        parts = train.train_test_split(test_size=size, seed=SPLIT_SEED)
        train, held_out, how = parts["train"], parts["test"], f"{config.eval_size} of {config.split}"
    else:
        held_out, how = None, "none"
    train, held_out = _head(train, config.max_train_rows), _head(held_out, config.max_eval_rows)
    assert train is not None
    ready, prompts = {}, None
    for name, rows in (("train", train), ("held-out", held_out)):
        if rows is not None:
            rows = rename(rows, config.columns)
            if not len(rows):
                raise PosttrainError(f"data.path={config.path}: no rows for {name}")
            if config.conversational:
                rows = converse(rows)
            ready[name] = adapt(rows, kind)
            check_rows(ready[name], name, config.path)
            # A trainer of prompts is probed on prompts as it gets them.
            online = form(ready[name].column_names, kind) == ("prompt",)
            prompts = _prompts(ready[name] if online else rows) if name == "held-out" else None
    return Data(
        train=ready["train"],
        eval=ready.get("held-out"),
        prompts=prompts,
        source={
            "path": config.path,
            "name": config.name,
            "revision": config.revision,
            "split": config.split,
            "held_out": how,
            "split_seed": SPLIT_SEED,
            "train_rows": len(ready["train"]),
            "held_out_rows": len(ready["held-out"]) if held_out is not None else 0,
            "fingerprint": fingerprint(ready["train"]),
        },
    )


def fingerprint(dataset: Dataset) -> str:
    """A digest of the rows themselves (16 hex digits): equal data has it equal on every machine."""
    import xxhash

    digest = xxhash.xxh64()
    for batch in dataset.select_columns(sorted(dataset.column_names)).with_format("arrow").iter(1000):
        for column in batch.to_pydict().values():
            digest.update(repr(column).encode())
    return digest.hexdigest()


def is_local(path: str) -> bool:
    """Whether `path` is meant as a file or folder here rather than a hub id."""
    return Path(path).suffix in BUILDERS or path.startswith((".", "/", "~")) or Path(path).exists()


def _head(dataset: Dataset | None, rows: int | None) -> Dataset | None:
    return dataset.select(range(min(rows, len(dataset)))) if dataset is not None and rows is not None else dataset


def _load_split(config: DataConfig, path: str, split: str, key: str) -> Dataset:
    import datasets

    if path.startswith("embedded:"):
        from posttrain.data import squad

        return _pick(squad.load(), split, key, path)
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
    from posttrain.data.formats import PAIRS, TRL_COLUMNS

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
