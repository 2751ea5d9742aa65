"""score_model and label_model: a language model's number, a language model's label."""

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from posttrain.rewards.graders import template
from posttrain.rewards.graders.schema import LabelModel, ScoreModel
from posttrain.rewards.judge_client import JudgeClient


def ask(
    node: ScoreModel | LabelModel, rows: list[dict[str, Any]], asker: JudgeClient, others: Mapping[str, Any]
) -> list[str]:
    """The model's answer for each row, with the grader's sampling options and `others`, which take precedence.

    Raises `template.MissingValue` where a row lacks what a template names.
    """
    return asker.ask([_conversation(node, row) for row in rows], **{**_sampling(node), **others})


def _sampling(node: ScoreModel | LabelModel) -> dict[str, Any]:
    given = node.sampling_params.model_dump(exclude_none=True)
    longest = given.pop("max_completions_tokens", None)
    if node.sampling_params.reasoning_effort is not None:
        # Reasoning models take neither a temperature nor max_tokens.
        return {"temperature": None, "max_tokens": None, "max_completion_tokens": longest, **given}
    return given if longest is None else {**given, "max_tokens": longest}


def score(node: ScoreModel, answer: str) -> float | None:
    """The `result` of the last JSON object with a number there, or a bare number, clipped to the range; else None."""
    answer = _after_thinking(answer)
    for value in (*(found.get("result") for found in reversed(list(_objects(answer)))), answer):
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            with suppress(ValueError):
                if (score := _within(node, float(value) if isinstance(value, str) else value)) is not None:
                    return score
    return None


def label(node: LabelModel, answer: str) -> str | None:
    """The label that the answer gives: alone, as `label` or `result` of a JSON object, or the only one in the text."""
    answer = _after_thinking(answer)
    texts = [answer] + [str(found.get("label", found.get("result"))) for found in _objects(answer)]
    for text in texts:
        for name in node.labels:
            if text.strip().strip("\"'`.*").casefold() == name.casefold():
                return name
    named = [name for name in node.labels if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", answer, re.IGNORECASE)]
    return named[0] if len(named) == 1 else None


def _after_thinking(answer: str) -> str:
    """What follows a model's thinking, <think>...</think>, whose start its template may have written."""
    return answer.rpartition("</think>")[2]


def _conversation(node: ScoreModel | LabelModel, row: dict[str, Any]) -> list[dict[str, Any]]:
    if isinstance(node, ScoreModel):
        low, high = node.range
        wanted = (
            'End with a JSON object {"result": NUMBER}, where NUMBER is your score, '
            f"from {low:g} (worst) to {high:g} (best)."
        )
    else:
        wanted = f"Answer with exactly one of these labels and nothing else: {', '.join(node.labels)}"
    messages = [
        {
            # "developer" is OpenAI's new name, which other servers and chat templates do not know.
            "role": "system" if message.role == "developer" else message.role,
            "content": template.parse(message.text).render(row),
        }
        for message in node.input
    ]
    # OpenAI prescribes the form by a JSON schema; words work with every server and model.
    if messages[0]["role"] == "system":
        first = {"role": "system", "content": f"{messages[0]['content']}\n\n{wanted}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": wanted}, *messages]


def _within(node: ScoreModel, value: float) -> float | None:
    """`value` clipped to the range; None for NaN and infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return float(min(max(value, node.range[0]), node.range[1]))


def _objects(text: str) -> Any:
    """The JSON objects in a text, outermost ones, in order."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            if isinstance(found, dict):
                yield found
        at = text.find("{", end)
