"""The turns of a conversation: one message, and splitting turns into prompt and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from posttrain.config import trainers
from posttrain.data.prompts import common_prefix_length
from posttrain.data.row import RowError


@dataclass(frozen=True)
class Message:
    """One turn. `calls` are OpenAI's tool calls with arguments as objects; `learn` is `None` where nothing is said."""

    role: str
    content: str = ""
    reasoning: str | None = None
    calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None
    call_id: str | None = None
    learn: bool | None = None

    def as_dict(self, reasoning: str) -> dict[str, Any]:
        """As chat templates take it; `reasoning` is the key of the template, or `inline`: a <think> block."""
        made: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None and reasoning == "inline":
            made["content"] = f"<think>\n{self.reasoning.strip()}\n</think>\n\n{self.content}"
        elif self.reasoning is not None:
            made[reasoning] = self.reasoning
        if self.calls:
            made["tool_calls"] = list(self.calls)
        weight = None if self.learn is None else int(self.learn)
        more = {"name": self.name, "tool_call_id": self.call_id, "weight": weight}
        return made | {key: value for key, value in more.items() if value is not None}

    @property
    def has_content(self) -> bool:
        return bool(self.content.strip() or self.calls or (self.reasoning or "").strip())


Turns: TypeAlias = list[Message]
# Plain text, which no template renders, or the turns of a conversation.
TextOrTurns: TypeAlias = str | list[Message]


def as_turns(said: TextOrTurns, role: str) -> Turns:
    """Text as one turn, stripped of the space that joined a completion to its prompt."""
    return [Message(role, said.strip())] if isinstance(said, str) else said


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


def check_learnable(messages: Turns | None, prompt: TextOrTurns | None, kind: str) -> None:
    """Raise `RowError` for turns that teach the trainer `kind` nothing."""
    reads = trainers.of(kind).reads
    if reads == "prompts" and isinstance(prompt, list) and prompt[-1].role == "assistant":
        last = f"prompt[{len(prompt) - 1}]"
        raise RowError(last, "is the assistant's, and TRL does not continue a turn; end with the user's")
    if messages is None:
        return
    if reads == "prompts" and all(one.role in ("assistant", "system") for one in messages):
        raise RowError("messages", "no message is the user's, so there is no prompt")
    if reads in ("text", "messages"):
        if not any(one.role == "assistant" for one in messages):
            raise RowError("messages", "no message is the assistant's, so nothing is learnt from it")
        if not any(one.role == "assistant" and one.learn is not False for one in messages):
            raise RowError("messages", "every assistant message has weight 0; nothing is learned from it")
    if reads == "messages" and (messages[-1].role != "assistant" or messages[-1].learn is False):
        last = f"messages[{len(messages) - 1}]"
        raise RowError(last, f"{kind} learns the last message alone, which has to be an answer")


def split_turns(prompt: TextOrTurns | None, answers: Mapping[str, TextOrTurns]) -> tuple[Turns, dict[str, Any]]:
    """Prompt and answers as turns, with the prompt removed from answers that repeat it.

    `answers` has one answer, or `chosen` and `rejected`. Without a prompt, their common beginning is the prompt.
    Raises `RowError` where the answers belong to different questions.
    """
    turns = {name: check_last_is_answer(as_turns(value, "assistant"), name) for name, value in answers.items()}
    whole = {name: value[0].role in ("user", "system") for name, value in turns.items()}
    question = prompt if isinstance(prompt, str) and all(whole.values()) else None
    if prompt is None or question is not None:
        # UltraFeedback has the question as text next to conversations that begin with it.
        asked, turns = _common_turns(turns)
        if question is not None and not any(question.strip() == turn.content.strip() for turn in asked):
            raise RowError("prompt", "is not among the turns that the answers begin with; leave it out, or correct it")
    else:
        if not (asked := without_learn_marks(as_turns(prompt, "user"))):
            raise RowError("", "has no turn before the answer; put the user's there")
        for name, value in turns.items():
            if whole[name]:
                if without_learn_marks(value[: len(asked)]) != asked or len(value) == len(asked):
                    raise RowError(f"{name}[0]", f"is a {value[0].role} turn, and does not repeat the prompt")
                turns[name] = value[len(asked) :]
    _check_answers_diverge(list(turns.values()))
    return asked, {name: check_whole_answer(value, name) for name, value in turns.items()}


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
