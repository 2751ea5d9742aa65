"""TRL's own columns as an `Example`."""

from collections.abc import Mapping
from typing import Any

from posttrain.data.example import Example, TextOrTurns
from posttrain.data.prompts import split_prompt, without_learn_marks
from posttrain.data.row import RowError, text

Row = Mapping[str, Any]


def trl(row: Row, needed: tuple[str, ...], repeated: bool = False, prompted: bool = False) -> Example:
    """TRL's own columns, those of `needed`: text stays text, lists are conversations; `repeated` as in `split_prompt`.

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
    given = ("prompt", *needed) if row.get("prompt") is not None or "prompt" in needed else needed
    prompt = _text_or_turns(row.get("prompt"), "prompt") if "prompt" in given else None
    if needed == ("prompt",):
        return Example(prompt=without_learn_marks(prompt) if isinstance(prompt, list) else prompt, used=needed)
    names = [name for name in needed if name not in ("prompt", "label")]
    answers: dict[str, Any] = {name: _text_or_turns(row.get(name), name) for name in names}
    begin_with_answer = all(isinstance(said, list) and said[0].role == "assistant" for said in answers.values())
    if prompt is None and isinstance(row.get("messages"), list) and begin_with_answer:
        from posttrain.data.messages import conversation

        prompt, given = conversation(row["messages"], "messages"), (*given, "messages")  # as axolotl has pairs
    if prompt is None and prompted and all(isinstance(said, str) for said in answers.values()):
        raise RowError("prompt", "is missing")
    asked, answers = split_prompt(prompt, answers, repeated)
    return Example(prompt=asked, used=given, **answers)


def _text_or_turns(value: Any, field: str) -> TextOrTurns:
    """A value of a column: text, unless it may hold messages."""
    if isinstance(value, str) and not value.lstrip().startswith(("{", "[", "array(")):
        return text(value, field)
    from posttrain.data.messages import text_or_turns

    return text_or_turns(value, field)
