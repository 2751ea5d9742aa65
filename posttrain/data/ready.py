"""Rows of one path, divided, in the columns that a trainer takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from posttrain.config.schema import DataConfig
from posttrain.data.files import Misfit
from posttrain.data.formats import ACCEPTS, PAIRS, TRL_COLUMNS, adapt, check_rows, check_values, check_weight, converse
from posttrain.data.judged import is_judged, judge
from posttrain.data.reading import shown
from posttrain.data.split import Divided, Part, divide
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Ready:
    """Rows as the trainer takes them; `prompts` are held-out rows for the probe, `None` where they have no prompt."""

    train: Dataset
    held_out: Dataset | None
    prompts: Dataset | None
    divided: Divided


def ready(config: DataConfig, kind: str) -> Ready:
    """Load, split and adapt the data of `config.path` for the trainer `kind`; raises `PosttrainError` for bad input."""
    divided = divide(config, kind)
    held_out = divided.held_out
    return Ready(
        adapted(divided.train, kind),
        adapted(held_out, kind) if held_out else None,
        prompts_for(held_out, kind) if held_out else None,
        divided,
    )


def ready_held_out(config: DataConfig, kind: str) -> Ready | None:
    """The held-out rows alone, as `train` too; KTO gets pairs as pairs. `None` where nothing is held out."""
    divided = divide(config, kind)
    held_out = divided.held_out
    if held_out is None:
        return None
    pairs = set(held_out.rows.column_names) >= set(PAIRS)
    rows = adapted(held_out, "dpo" if kind == "kto" and pairs else kind)
    return Ready(rows, rows, prompts_for(held_out, kind), divided)


def ready_prompts(config: DataConfig, kind: str, split: str) -> Ready | None:
    """The prompts of `split` (train, eval), as trainer `kind` and its probe see them; `None` without such rows."""
    divided = divide(config, None)
    part = divided.train if split == "train" else divided.held_out
    if part is None:
        return None
    found = prompts_for(part, kind)
    if found is None:
        raise PosttrainError(
            f"data.path={shown(config.path)}: no prompts to sample for: it has no column prompt, messages, or chosen "
            "and rejected; 'data.columns={prompt: THEIRS}' maps one"
        )
    check_rows(found, part.name, shown(config.path))
    return Ready(found, None, found, divided)


def stored(config: DataConfig, name: str = "trl") -> Dataset:
    """All rows of `config.path` as they are stored, under our column names, or converted from the format `name`.

    Of those that are not converted only the prompts are checked: the caller knows what else he takes.
    """
    whole = replace(config, format=name, eval_size=0, eval_path=None, eval_split=None)
    part = divide(whole, None, needed=("prompt",)).train
    return _conversed(_limited(part), part)


def adapted(part: Part, kind: str) -> Dataset:
    """The first rows as the trainer `kind` takes them."""
    rows = _limited(part)
    if is_judged(rows.column_names, part.format):
        rows = judge(rows, kind, part.config.pairs, part.config.threshold)
    made = _adapt(_conversed(rows, part), kind, part)
    if part.format == "trl":  # other rows were checked when they were converted
        check_rows(made, part.name, shown(part.config.path))
    return _weighed(made, part) if {"weight", *PAIRS} <= {*made.column_names} else made


def prompts_for(part: Part, kind: str) -> Dataset | None:
    """The prompts of the first rows, with their other columns; `None` for plain text, which has no prompt."""
    rows = _limited(part)
    if is_judged(rows.column_names, part.format):
        rows = judge(rows, "grpo", part.config.pairs, None)
    rows = _conversed(rows, part)
    # A trainer of prompts is probed on prompts as it gets them.
    return _prompts(_adapt(rows, kind, part) if ACCEPTS[kind][0] == ("prompt",) else rows, part)


def _weighed(rows: Dataset, part: Part) -> Dataset:
    """`rows` with their column `weight` as numbers."""
    from datasets import Value

    for index, value in enumerate(rows["weight"][:]):
        try:
            check_weight({"weight": value})
        except Misfit as misfit:
            raise _unfit(Misfit(f"row {index}", f"column weight: {misfit}"), part) from None
    return rows.cast_column("weight", Value("float64"))


def _adapt(rows: Dataset, kind: str, part: Part) -> Dataset:
    try:
        return adapt(rows, kind, part.format)
    except Misfit as misfit:
        raise _unfit(misfit, part) from None


def _unfit(misfit: Misfit, part: Part) -> PosttrainError:
    return PosttrainError(f"data.path={shown(part.config.path)}: {misfit.field} of {part.name}, {misfit.reason}")


def _limited(part: Part) -> Dataset:
    rows = part.rows if part.limit is None else part.rows.select(range(min(part.limit, len(part.rows))))
    if not len(rows):
        raise PosttrainError(f"data.path={shown(part.config.path)}: no rows for {part.name}")
    return rows


def _conversed(rows: Dataset, part: Part) -> Dataset:
    return converse(rows) if part.config.conversational else rows


def _prompts(rows: Dataset, part: Part) -> Dataset | None:
    columns = set(rows.column_names)
    if set(PAIRS) <= columns:
        rows = _adapt(rows, "dpo", part)
    elif "messages" in columns:
        # UltraChat has the first turn as text beside the conversation: the conversation is what is trained on.
        try:
            rows = rows.map(_before, with_indices=True, desc="Taking prompts")
        except Misfit as misfit:
            raise _unfit(misfit, part) from None
        rows = rows.filter(lambda row: bool(row["prompt"]))
    elif "prompt" not in columns:
        return None
    return rows.remove_columns([c for c in rows.column_names if c in TRL_COLUMNS and c != "prompt"])


def _before(row: dict[str, Any], index: int) -> dict[str, Any]:
    check_values(row, index, ("messages",))
    return {"prompt": row["messages"][:-1]}
