"""TRL's own columns as an `Example`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrain.data.example import Example
from posttrain.data.prompts import split_text
from posttrain.data.row import RowError, text

if TYPE_CHECKING:
    from posttrain.data.turns import TextOrTurns


def trl(row: Mapping[str, Any], needed: tuple[str, ...], repeated: bool = False, prompted: bool = False) -> Example:
    """TRL's own columns, those of `needed`: text stays text, lists are conversations; `repeated` as in `split_text`.

    `prompted`: the data has a column `prompt`, so a common beginning of two answers is not taken for the prompt.
    """
    if not needed:
        return Example()
    if needed[0] == "messages":
        from posttrain.data.messages import conversation

        return Example(messages=conversation(row.get("messages"), "messages"), used=("messages",))
    if needed == ("text",):
        asked = row["prompt"] if isinstance(row.get("prompt"), str) else None  # for samples; the text is learnt
        return Example(text=text(row.get("text"), "text"), prompt=asked, used=("text", "prompt"))
    used = ("prompt", *needed) if row.get("prompt") is not None else needed
    prompt: Any = _text_or_turns(row.get("prompt"), "prompt") if "prompt" in used else None
    answers: Any = {name: _text_or_turns(row.get(name), name) for name in needed if name not in ("prompt", "label")}
    begin_with_answer = all(isinstance(said, str) or said[0].role == "assistant" for said in answers.values())
    if prompt is None and begin_with_answer and str(row.get("messages")).lstrip().startswith("["):
        prompt, used = _text_or_turns(row["messages"], "messages"), (*used, "messages")  # as axolotl has pairs
    if all(said is None or isinstance(said, str) for said in (prompt, *answers.values())):
        if prompt is None and prompted:
            raise RowError("prompt", "is missing")
        prompt, answers = split_text(prompt, answers, repeated)
        return Example(prompt=prompt, used=used, **answers)
    from posttrain.data import turns

    prompt, answers = turns.split_turns(prompt, answers)
    return Example(prompt=prompt, used=used, **answers)


def _text_or_turns(value: Any, field: str) -> TextOrTurns:
    """A value of a column: text, unless it may hold messages."""
    if isinstance(value, str) and not value.lstrip().startswith(("{", "[", "array(")):
        return text(value, field)
    from posttrain.data.messages import text_or_turns

    return text_or_turns(value, field)
