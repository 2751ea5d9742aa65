"""Several sources as one: `data.mix={name: {path: ..., weight: ...}}`."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import OmegaConf

from posttrain.config import checks, schema_errors
from posttrain.config.schema import DataConfig
from posttrain.config.suggestions import did_you_mean
from posttrain.data.columns import TRL_COLUMNS
from posttrain.data.formats import SETTINGS
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset

Part = TypeVar("Part")
SEED = 0
# Settings that a part inherits from `data` where it does not set them itself.
INHERITED_SETTINGS = ("eval_size", "conversational", "on_error", "threshold", "pairs")
# Settings of a single source: where it is and how it is read. With a mixture they belong in its parts only.
SOURCE_SETTINGS = (
    *("path", "name", "revision", "split", "eval_path", "eval_split"),
    *("columns", "args", "min_score", "format"),
)
# Settings of the mixture as a whole.
MIXTURE_SETTINGS = ("mix", "stopping_strategy", "streaming")


def parts(config: DataConfig) -> dict[str, DataConfig]:
    """The sources by name."""
    common = {name: getattr(config, name) for name in INHERITED_SETTINGS}
    found: dict[str, Any] = {}
    for name, entry in config.mix.items():
        given = {**common, **{key: value for key, value in entry.items() if key != "weight"}}
        found[name] = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), given))
    return found


def load_parts(config: DataConfig, make: Callable[[DataConfig], Part]) -> dict[str, Part]:
    """What `make` returns for the settings of each part, by name; its errors name `data.mix.NAME.KEY`."""
    made: dict[str, Part] = {}
    for name, part in parts(config).items():
        try:
            made[name] = make(part)
        except PosttrainError as error:
            raise PosttrainError(re.sub(r"(?m)^data\.", f"data.mix.{name}.", str(error))) from error
    return made


def check(config: DataConfig) -> Iterator[str]:
    """What is wrong with the mixture, before anything is read."""
    known = [f.name for f in fields(DataConfig) if f.name not in MIXTURE_SETTINGS] + ["weight"]
    for name, entry in config.mix.items():
        where = f"data.mix.{name}"
        if not isinstance(entry, dict):
            yield f"{where}={entry}: expected keys such as path and weight"
            continue
        for key in entry:
            if key not in known:
                fix = did_you_mean(key, known, 1, f"known here: {', '.join(known)}")
                yield f"{where}.{key}: unknown key; {fix}"
        yield from _wrong_values({key: value for key, value in entry.items() if key in known[:-1]}, where)
        if entry.get("path") in (None, ""):
            yield f"{where}.path: required, and not set"
        weight = entry.get("weight")
        if weight is not None and (not isinstance(weight, (int, float)) or isinstance(weight, bool)):
            yield f"{where}.weight={weight}: expected a number above 0"
    yield from _unused_settings(config)
    given = [isinstance(entry, dict) and entry.get("weight") is not None for entry in config.mix.values()]
    if any(given) and not all(given):
        yield "data.mix: some parts have a weight and some have none; give all of them one, or none"


def _wrong_values(given: dict[str, Any], where: str) -> list[str]:
    """Errors in the settings of a part, as the schema and `preflight` have them for `data`."""
    errors: list[str] = []
    fit = schema_errors.take_known(DataConfig, given, f"{where}.", errors)
    wrong = (
        checks.wrong_choice(f"{where}.{key}", fit[key], allowed) for key, allowed in SETTINGS.items() if key in fit
    )
    return errors + [one for one in wrong if one]


def _unused_settings(config: DataConfig) -> list[str]:
    """Errors for settings of a single source that a mixture does not read."""
    default, args = DataConfig(path=""), {name: value for name, value in config.args.items() if value is not None}
    given = replace(config, path=config.path or "", args=args)
    found = [
        f"data.{name}={getattr(given, name)}"
        for name in SOURCE_SETTINGS
        if getattr(given, name) != getattr(default, name)
    ]
    if not found:
        return []
    fix = "~data leaves out what a recipe takes from a group, data.args.OPTION=null drops one option"
    return [f"{', '.join(found)}: not read together with data.mix; set it in data.mix.NAME of its part ({fix})"]


def counts(sizes: list[int], weights: list[float] | None, stopping: str) -> list[int]:
    """How many rows to take from each part: all of them without weights, else in proportion to the weights.

    `first_exhausted`: as many as there are without repeating a row; `all_exhausted`: until every row was seen, smaller
    parts repeating theirs. Each part has at least one.
    """
    if weights is None:
        return sizes
    shares = [weight / sum(weights) for weight in weights]
    whole = [size / share for size, share in zip(sizes, shares, strict=True)]
    if stopping == "first_exhausted":
        return [max(1, min(size, int(min(whole) * share + 1e-9))) for size, share in zip(sizes, shares, strict=True)]
    return [max(size, round(max(whole) * share)) for size, share in zip(sizes, shares, strict=True)]


def order(sizes: list[int], wanted: list[int]) -> list[int]:
    """Row numbers in the concatenated parts: `wanted` of each, drawn and shuffled with a fixed seed."""
    drawn, start, rng = [], 0, random.Random(SEED)
    for size, count in zip(sizes, wanted, strict=True):
        while count > 0:
            numbers = rng.sample(range(start, start + size), size)
            drawn += numbers[:count]
            count -= size
        start += size
    rng.shuffle(drawn)
    return drawn


def draw(config: DataConfig, rows: Dataset, sizes: list[int]) -> tuple[Dataset, list[int]]:
    """Rows drawn by weight from the concatenated parts, `rows`; and how many of each part."""
    weights = [entry["weight"] for entry in config.mix.values() if entry.get("weight") is not None]
    numbers = order(sizes, counts(sizes, weights or None, config.stopping_strategy))[: config.max_train_rows]
    taken, start = [], 0
    for size in sizes:
        taken.append(sum(start <= number < start + size for number in numbers))
        start += size
    return rows.select(numbers), taken


def join(rows: Mapping[str, Dataset]) -> Dataset:
    """The parts, concatenated; a column that is not TRL's is `None` in parts without it.

    Raises `PosttrainError` where the columns of the parts do not fit together.
    """
    from datasets import concatenate_datasets

    same = _unify_columns(rows)
    features: dict[str, Any] = {}
    first: dict[str, str] = {}
    for name, part in same.items():
        for column, feature in part.features.items():
            if features.setdefault(column, feature) != feature:
                raise PosttrainError(
                    f"data.mix.{name}: the column {column} is of another type than in {first[column]}; give it another "
                    f"name: 'data.mix.{name}.columns={{OTHER: {column}}}'"
                )
            first.setdefault(column, name)
    return concatenate_datasets(list(same.values()))


def _unify_columns(rows: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The parts with the same TRL columns: all conversations or all text, and `messages` if one part has it."""
    if len({frozenset(TRL_COLUMNS & set(part.column_names)) for part in rows.values()}) > 1:
        rows = {name: _as_messages(part, name, rows) for name, part in rows.items()}
    kinds: dict[str, dict[bool, str]] = {}
    for name, part in rows.items():
        first = part[0]
        for column in sorted(TRL_COLUMNS & first.keys() - {"label"}):
            kinds.setdefault(column, {})[isinstance(first[column], str)] = name
    for column, names in kinds.items():
        if len(names) > 1:
            raise PosttrainError(
                f"data.mix: {column} is text in {names[True]} and a conversation in {names[False]}; make it one: "
                f"data.mix.{names[True]}.conversational=true"
            )
    return {name: _json_messages(part) for name, part in rows.items()}


def _as_messages(part: Dataset, name: str, rows: Mapping[str, Dataset]) -> Dataset:
    columns = set(part.column_names)
    if "messages" in columns:
        return part
    if {"prompt", "completion"} <= columns and any("messages" in other.column_names for other in rows.values()):
        if isinstance(part[0]["prompt"], list):
            return part.map(_as_one, remove_columns=["prompt", "completion"])
        raise PosttrainError(
            f"data.mix.{name}: is text, and other parts are conversations; set its conversational=true"
        )
    every = "; ".join(f"{n}: {', '.join(sorted(TRL_COLUMNS & set(p.column_names)))}" for n, p in rows.items())
    raise PosttrainError(f"data.mix: the parts have different columns to learn from ({every})")


def _as_one(row: dict[str, Any]) -> dict[str, Any]:
    """Prompt and completion as one conversation in which only the completion carries the loss."""
    asked = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in row["prompt"]]
    return {"messages": asked + row["completion"]}


def _json_messages(part: Dataset) -> Dataset:
    """Messages as JSON in Arrow, so that parts whose messages have different keys can be concatenated."""
    from datasets import Json, List

    columns = [c for c in TRL_COLUMNS & set(part.column_names) if isinstance(part[0][c], list)]
    wrong = {c: List(Json()) for c in columns if part.features[c] != List(Json())}
    if not wrong:
        return part
    features = part.features.copy()
    features.update(wrong)
    return part.map(lambda row: {column: row[column] for column in wrong}, features=features)
