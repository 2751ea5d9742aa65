"""Held-out rows that are trained on as well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from posttrain.data.columns import TRL_COLUMNS
from posttrain.data.split import prompts_as_text
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset


def count(train: Dataset, held_out: Dataset) -> dict[str, int]:
    """How many held-out rows are also training rows, and how many share their prompt with a training row."""
    learnt = [name for name in sorted(TRL_COLUMNS) if name in train.column_names and name in held_out.column_names]

    def whole(rows: Dataset) -> Iterator[int]:
        return (hash(repr(row)) for row in rows.select_columns(learnt))

    seen, asked = set(whole(train)), set(prompts_as_text(train)) - {None}
    shared = sum(prompt in asked for prompt in prompts_as_text(held_out))
    return {"rows": sum(row in seen for row in whole(held_out)), "prompts": shared}


def note(source: dict[str, Any]) -> dict[str, str]:
    """The plan's line; `source` is that of `posttrain.data.loading.Data`."""
    common = source["overlap"]
    if not any(common.values()):
        return {}
    return {
        "overlap": f"{common['rows']} of {source['held_out_rows']} held-out rows are trained on as well, "
        f"{common['prompts']} have a prompt that is: what is measured on them is not of unseen rows"
    }


def check(source: dict[str, Any]) -> None:
    """Raise `PosttrainError` where every held-out row is trained on."""
    if source["overlap"]["rows"] == source["held_out_rows"]:
        raise PosttrainError(
            f"data.eval_path: each of the {source['held_out_rows']} held-out rows is a row of data.path="
            f"{source['path']} too; give other rows, or leave data.eval_path and data.eval_split out: data.eval_size "
            "holds rows out"
        )
