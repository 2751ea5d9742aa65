"""The score that reasoning-gym's own scorer gives; signature and None as in `rewards.text`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.rewards.text import Completion, number, references, text_of

_TAG = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)


def reasoning_gym(
    completions: Sequence[Completion], column: str = "task", extract: str = "tag", **columns: Any
) -> list[float | None]:
    """The task's `score_answer`, mostly in [0, 1], for rows of `data.path=reasoning_gym:TASK`.

    `extract` says what of the completion is the answer: `tag` what stands in the last <answer>...</answer>, or all of
    it without one; `text` all of it; `number` the last number. None for rows of other data.
    """
    if extract not in ("tag", "text", "number"):
        raise PosttrainError(f"reward reasoning_gym: extract={extract}: choose from tag, text, number")
    return [
        _score(_answer(text_of(completion), extract), row[0]) if row else None
        for completion, row in zip(completions, references(columns, column), strict=True)
    ]


def _answer(text: str, extract: str) -> str:
    if extract == "number":
        found = number(text)
        return "" if found is None else f"{found:f}"
    tags = _TAG.findall(text) if extract == "tag" else []
    return str(tags[-1]) if tags else text


def _score(answer: str, task: str) -> float:
    from posttrain.data.gym import dataset

    place = json.loads(task)
    tasks = dataset(place["name"], json.dumps(place["options"], sort_keys=True), "reward reasoning_gym")
    # Drawn again, not stored: an entry's metadata need not survive JSON.
    return float(tasks.score_answer(answer, entry=tasks[place["index"]]))
