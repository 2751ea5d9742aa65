"""Splitting a row into prompt and answers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from posttrain.data.example import TextOrTurns, Turns, as_turns
from posttrain.data.row import RowError, text


def check_last_is_answer(messages: Turns, field: str) -> Turns:
    """`messages`; raises `RowError` unless the last one is the assistant's and has content or calls."""
    last = messages[-1]
    if last.role != "assistant":
        raise RowError(f"{field}[{len(messages) - 1}]", f"the last message is the {last.role}'s; nothing is answered")
    if not last.has_content:
        raise RowError(f"{field}[{len(messages) - 1}]", "an assistant turn is empty")
    return messages


def check_whole_answer(messages: Turns, field: str) -> Turns:
    """`messages`, an answer that is learnt as a whole; raises `RowError` where a message is marked as not learnt."""
    for index, one in enumerate(messages):
        if one.learn is False:
            raise RowError(
                f"{field}[{index}]",
                "is marked as not learnt, and an answer is learnt as a whole; give the row as messages",
            )
    return without_learn_marks(messages)


def without_learn_marks(messages: Turns) -> Turns:
    return [replace(one, learn=None) for one in messages]


def split_prompt(
    prompt: TextOrTurns | None, answers: Mapping[str, TextOrTurns], repeated: bool = False
) -> tuple[TextOrTurns, dict[str, Any]]:
    """Prompt and answers, split: all text, or all turns, with the prompt removed from answers that repeat it.

    `answers` has one answer, or `chosen` and `rejected`. Without a prompt, their common beginning is the prompt.
    `repeated` says that answers of text begin with the prompt's text. Raises `RowError` where the answers belong to
    different questions.
    """
    if all(isinstance(value, str) for value in (prompt, *answers.values()) if value is not None):
        if prompt is None:
            return _common_text(answers)
        return prompt, _strip_prompt_text(str(prompt), answers) if repeated else dict(answers)
    turns = {name: check_last_is_answer(as_turns(value, "assistant"), name) for name, value in answers.items()}
    whole = {name: value[0].role in ("user", "system") for name, value in turns.items()}
    question = prompt if isinstance(prompt, str) and all(whole.values()) else None
    if question is not None:
        prompt = None  # UltraFeedback has the question as text next to conversations that begin with it
    if prompt is None:
        asked, turns = _common_turns(turns)
    else:
        if not (asked := without_learn_marks(as_turns(prompt, "user"))):
            raise RowError("", "has no turn before the answer; put the user's there")
        for name, value in turns.items():
            if whole[name]:
                if without_learn_marks(value[: len(asked)]) != asked or len(value) == len(asked):
                    raise RowError(f"{name}[0]", f"is a {value[0].role} turn, and does not repeat the prompt")
                turns[name] = value[len(asked) :]
    if question is not None and not any(question.strip() == turn.content.strip() for turn in asked):
        raise RowError("prompt", "is not among the turns that the answers begin with; leave it out, or correct it")
    _check_answers_diverge(list(turns.values()))
    return asked, {name: check_whole_answer(value, name) for name, value in turns.items()}


def _strip_prompt_text(prompt: str, answers: Mapping[str, TextOrTurns]) -> dict[str, TextOrTurns]:
    rest = {name: str(value) for name, value in answers.items()}
    if prompt.strip() and all(value.startswith(prompt) for value in rest.values()):
        rest = {name: value[len(prompt) :] for name, value in rest.items()}
        for name, value in rest.items():
            text(value, name)
    return dict(rest)


def _common_text(answers: Mapping[str, TextOrTurns]) -> tuple[str, dict[str, TextOrTurns]]:
    """The common beginning of two texts, which is their prompt, and the answers; these keep their space, as in TRL."""
    values = [str(value) for value in answers.values()]
    same = common_prefix_length(*values) if len(values) > 1 else 0
    if same == min(map(len, values)):
        same -= 1
    if same > 0 and values[0][same - 1] == " ":
        same -= 1
    same = max(same, 0)
    return values[0][:same], {name: str(value)[same:] for name, value in answers.items()}


def _common_turns(turns: dict[str, Turns]) -> tuple[Turns, dict[str, Turns]]:
    values = [without_learn_marks(value) for value in turns.values()]
    field, several = next(iter(turns)), len(values) > 1
    same = min(common_prefix_length(*values) if several else len(values[0]), *(len(value) - 1 for value in values))
    if not same and several:
        raise RowError(field, "shares no first turn with rejected; pairs answer the same prompt")
    if not same:
        raise RowError(field, "has no turn that is answered")
    return values[0][:same], {name: value[same:] for name, value in turns.items()}


def _check_answers_diverge(answers: list[Turns]) -> None:
    """Raise `RowError` where the answers first differ in a turn that is not the assistant's: two questions."""
    if len(answers) < 2:
        return
    at = common_prefix_length(*answers)
    differing = [answer[at] for answer in answers if at < len(answer)]
    if other := next((one for one in differing if one.role != "assistant"), None):
        raise RowError("rejected", f"differs from chosen at a {other.role} turn, so the two answer different questions")


def common_prefix_length(one: Any, other: Any) -> int:
    """The length of the common prefix of two sequences."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
