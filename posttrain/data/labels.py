"""Labels and ratings of answers: booleans, numbers, thumbs and words for them."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from posttrain.data.example import Example
from posttrain.data.row import RowError, shortened
from posttrain.data.turns import check_last_is_answer, split_turns
from posttrain.errors import PosttrainError

THUMBS_UP = ("up", "thumbs_up", "👍", "+1", "good", "like", "true", "desirable")
THUMBS_DOWN = ("down", "thumbs_down", "👎", "-1", "bad", "dislike", "false", "undesirable")

_OF_NUMBERS = " (of numbers: 'data.columns={rating: label}' and data.threshold=LOWEST_GOOD_ONE)"
# Unicode modifiers of a thumb emoji: skin tones, and the selector of emoji presentation.
_TONES = re.compile(
    "[\N{EMOJI MODIFIER FITZPATRICK TYPE-1-2}-\N{EMOJI MODIFIER FITZPATRICK TYPE-6}\N{VARIATION SELECTOR-16}]"
)


def label(value: Any) -> bool:
    """Whether an answer is good: true, 1 or a word for it; raises `RowError` for a value that is not clear."""
    good = {"0": False, "1": True}.get(value) if isinstance(value, str) else bool(value) if value in (0, 1) else None
    if good is None and (good := thumb(value)) is None:
        if value is None:
            raise RowError("label", "is missing")
        fix = _OF_NUMBERS if is_number(value) else ""
        raise RowError("label", f"expected true or false, got {shortened(value)}{fix}")
    return good


def labelled(make: Callable[[Mapping[str, Any]], Example], row: Mapping[str, Any]) -> Example:
    """The row with the label of its answer; in `messages` that is the last turn, as in LLaMA-Factory's KTO."""
    example = make(row)
    if example.messages is not None:
        turns = check_last_is_answer(example.messages, example.used[0])
        asked, answers = split_turns(turns[:-1], {"completion": turns[-1:]})
        example = replace(example, messages=None, prompt=asked, **answers)
    if example.completion is None:
        return example
    return replace(example, label=label(row.get("label")), used=(*example.used, "label"))


def check_scale(labels: Iterable[Any]) -> None:
    """Raise `PosttrainError` for ratings in the label column, whose 0 and 1 would be taken for labels."""
    if other := next((value for value in labels if is_number(value) and value not in (0, 1)), None):
        raise PosttrainError(f"data.columns: label holds {other}, and is read as true or false, 1 or 0{_OF_NUMBERS}")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def rating(value: Any, field: str) -> float | bool:
    """A rating: a number, or a boolean for a thumb; raises `RowError` for anything else."""
    good = thumb(value)
    return number(value, field) if good is None else good


def thumb(value: Any) -> bool | None:
    """A boolean, or a word or emoji for one, as a boolean; `None` for anything else."""
    if isinstance(value, bool) or not isinstance(value, str):
        return value if isinstance(value, bool) else None
    known = _TONES.sub("", value).strip().lower()
    return known in THUMBS_UP if known in THUMBS_UP or known in THUMBS_DOWN else None


def number(value: Any, field: str) -> float:
    try:
        found = float("nan") if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = float("nan")
    if found != found or abs(found) == float("inf"):
        raise RowError(field, f"expected a number, got {value!r:.60}" if value is not None else "is missing")
    return found
