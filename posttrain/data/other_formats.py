"""The formats other than TRL's: each a function from a row to an `Example`.

Sources: the data sets' cards and the documentation named in docs/data.md.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from posttrain.config import trainers
from posttrain.data.columns import choose_columns
from posttrain.data.example import Example
from posttrain.data.formats import ACCEPTS, ANSWER_COLUMNS, PAIRS, QUESTION_COLUMNS, RATING_COLUMNS, is_scored
from posttrain.data.json_values import parse_json_string
from posttrain.data.labels import number, rating
from posttrain.data.messages import conversation, message, text_or_turns
from posttrain.data.row import RowError, shortened, text
from posttrain.data.tools import schemas
from posttrain.data.turns import (
    Message,
    TextOrTurns,
    Turns,
    as_turns,
    check_last_is_answer,
    check_whole_answer,
    split_turns,
    without_learn_marks,
)

Row = Mapping[str, Any]
_TURN = re.compile(r"\n\n(Human|Assistant):")


def alpaca(row: Row) -> Example:
    """`instruction`, `input`, `output` (or `chosen` and `rejected`); `system` and `history` as in LLaMA-Factory."""
    asked = text(row.get("instruction"), "instruction")
    given = row.get("input")
    if more := text("" if given is None else given, "input", empty=True).strip():
        asked = f"{asked}\n\n{more}"
    prompt = [*_history(row.get("history")), Message("user", asked)]
    theirs = {"completion": "output"}
    if row.get("chosen") is not None:
        theirs = {side: side for side in PAIRS}
    elif isinstance(row.get("output"), list) and len(row["output"]) == 2:  # LLaMA-Factory's older pairs
        row = {**row, "chosen": row["output"][0], "rejected": row["output"][1]}
        theirs = {side: side for side in PAIRS}
    answers: dict[str, Any] = {ours: [Message("assistant", text(row.get(name), name))] for ours, name in theirs.items()}
    # In the published file `text` is the same again, rendered.
    used = ("instruction", "input", "output", "history", "text", *theirs.values())
    return Example(prompt=prompt, used=used, **answers)


def _listed(value: Any, field: str) -> Any:
    """A list that may be written as JSON, as in a cell of a CSV file; any other value as it is."""
    return parse_json_string(value, field) if isinstance(value, str) and value.lstrip().startswith("[") else value


def _history(given: Any) -> Turns:
    """Earlier questions with their answers, in pairs."""
    given = _listed(given, "history")
    turns: Turns = []
    for index, pair in enumerate(given if isinstance(given, list) else [given] if given else []):
        field = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(field, f"expected a question and its answer, got {shortened(pair)}")
        turns += [Message("user", text(pair[0], field)), Message("assistant", text(pair[1], field))]
    return turns


def sharegpt(row: Row, unanswered: bool = False) -> Example:
    """`conversations` of `from` and `value`; with `chosen` and `rejected` turns, pairs.

    `unanswered`: the last turn may be the human's.
    """
    column = "conversations" if row.get("conversations") is not None else "conversation"
    turns = conversation(row.get(column), column, "turns")
    used = ("conversations", "conversation")
    if row.get("chosen") is not None:
        pair = {side: _reply(row.get(side), side) for side in PAIRS}
        prompt, answers = split_turns(turns, pair)
        return Example(prompt=prompt, used=(*used, *PAIRS), **answers)
    return Example(messages=turns if unanswered else check_last_is_answer(turns, column), used=used)


def _reply(given: Any, field: str) -> Turns:
    """An answer: one turn in any known form, a list of turns, or text."""
    if isinstance(given, Mapping):
        return [message(given, field)]
    return as_turns(text_or_turns(given, field), "assistant")


def message_pairs(row: Row) -> Example:
    """`chosen_messages` (or `messages`) and `rejected_messages`: whole conversations that part at an answer."""
    better = "chosen_messages" if row.get("chosen_messages") is not None else "messages"
    theirs = {"chosen": better, "rejected": "rejected_messages"}
    prompt, answers = split_turns(None, {side: conversation(row.get(name), name) for side, name in theirs.items()})
    return Example(prompt=prompt, used=tuple(theirs.values()), **answers)


def ms_swift_preference(row: Row) -> Example:
    """ms-swift's pairs: `messages`, and `rejected_response`, the worse last answer."""
    turns = check_last_is_answer(conversation(row.get("messages"), "messages"), "messages")
    rejected = _reply(row.get("rejected_response"), "rejected_response")
    prompt, answers = split_turns(turns[:-1], {"chosen": turns[-1:], "rejected": rejected})
    return Example(prompt=prompt, used=("messages", "rejected_response"), **answers)


def ms_swift(row: Row) -> Example:
    """ms-swift's older rows: `query`, `response`, `history`, `system`; with `rejected_response`, pairs."""
    prompt = [*_history(row.get("history")), Message("user", text(row.get("query"), "query"))]
    said: Turns = [Message("assistant", text(row.get("response"), "response"))]
    used = ("query", "response", "history")
    if row.get("rejected_response") is None:
        return Example(prompt=prompt, completion=said, used=used)
    rejected = [Message("assistant", text(row["rejected_response"], "rejected_response"))]
    return Example(prompt=prompt, chosen=said, rejected=rejected, used=(*used, "rejected_response"))


def orca(row: Row) -> Example:
    """Orca's pairs as a conversation: a question, `chosen`, `rejected`, and `system`."""
    column = next(name for name in (*QUESTION_COLUMNS, "question") if name in row or name == "question")
    asked = as_turns(text_or_turns(row.get(column), column), "user")
    prompt, answers = split_turns(asked, {side: text_or_turns(row.get(side), side) for side in PAIRS})
    return Example(prompt=prompt, used=(column, *PAIRS), **answers)


def openai(row: Row) -> Example:
    """Fine-tuning by OpenAI's API: `messages`, `tools`, and a `weight` of 0 or 1 on assistant messages."""
    turns = check_last_is_answer(conversation(row.get("messages"), "messages"), "messages")
    return Example(messages=turns, used=("messages",))


def openai_preference(row: Row) -> Example:
    """`input.messages` (and `input.tools`), `preferred_output` and `non_preferred_output`, lists of messages."""
    given = row.get("input")
    if not isinstance(given, Mapping):
        raise RowError("input", f"expected an object with messages, got {shortened(given)}")
    asked = conversation(given.get("messages"), "input.messages")
    theirs = {"chosen": "preferred_output", "rejected": "non_preferred_output"}
    answers = {ours: check_last_is_answer(conversation(row.get(name), name), name) for ours, name in theirs.items()}
    prompt, split = split_turns(asked, dict(answers))
    return Example(prompt=prompt, tools=schemas(given.get("tools")), used=("input", *theirs.values()), **split)


def openai_rft(row: Row) -> Example:
    """Reinforcement fine-tuning: `messages` that end with the user's, and any other fields, for the grader."""
    turns = without_learn_marks(conversation(row.get("messages"), "messages"))
    if turns[-1].role not in ("user", "system"):
        raise RowError(f"messages[{len(turns) - 1}].role", "the last message must be the user's: the model answers it")
    return Example(prompt=turns, used=("messages",))


def _dialogue(value: Any, field: str) -> Turns:
    """A dialogue in one string, as in Anthropic's HH: turns opened by two newlines and `Human:` or `Assistant:`."""
    pieces = _TURN.split("\n\n" + text(value, field).lstrip())
    if len(pieces) < 3 or pieces[0].strip():
        raise RowError(field, f"expected turns opened by '\\n\\nHuman:' and '\\n\\nAssistant:', got {shortened(value)}")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return [Message(roles[name], said.strip()) for name, said in turns]


def hh(row: Row) -> Example:
    """Anthropic's HH: `chosen` and `rejected` are whole dialogues, equal up to where they part."""
    prompt, answers = split_turns(
        None, {side: check_last_is_answer(_dialogue(row.get(side), side), side) for side in PAIRS}
    )
    return Example(prompt=prompt, used=PAIRS, **answers)


def ultrafeedback(row: Row) -> Example:
    """UltraFeedback as published: `instruction`, `completions` with `response` and `overall_score`."""
    given = _listed(row.get("completions"), "completions")
    if not isinstance(given, list) or not given:
        raise RowError("completions", f"expected a list of completions, got {shortened(given)}")
    said: list[TextOrTurns] = []
    scores = []
    for index, one in enumerate(given):
        field = f"completions[{index}]"
        if not isinstance(one, Mapping):
            raise RowError(field, f"expected an object with response and overall_score, got {shortened(one)}")
        said.append([Message("assistant", text(one.get("response"), f"{field}.response"))])
        name = "overall_score" if one.get("overall_score") is not None else "fine-grained_score"
        scores.append(number(one.get(name), f"{field}.{name}"))
    prompt = [Message("user", text(row.get("instruction"), "instruction"))]
    return Example(prompt=prompt, completions=said, scores=scores, used=("instruction", "completions"))


def rankings(row: Row) -> Example:
    """`completions` with `ranks` (1 is best) or `scores`; without either, best first; or Nectar's `answers`."""
    given, ranks, scores = (_listed(row.get(name), name) for name in ("completions", "ranks", "scores"))
    where = "completions"
    if given is None and isinstance(answers := row.get("answers"), list):
        where = "answers"
        if not all(isinstance(answer, Mapping) for answer in answers):
            raise RowError(where, f"expected objects with answer and rank, got {shortened(answers)}")
        given, ranks = [answer.get("answer") for answer in answers], [answer.get("rank") for answer in answers]
    elif given is None and "answers" in row:
        where, given = "answers", row["answers"]
    if not isinstance(given, list) or len(given) < 2:
        raise RowError(where, f"expected a list of at least two answers, got {shortened(given)}")
    name, order = ("scores", scores) if scores is not None else ("ranks", ranks)
    if order is None:
        order = list(range(1, len(given) + 1))
    if not isinstance(order, list) or len(order) != len(given):
        raise RowError(name, f"expected {len(given)} numbers, one per answer, got {shortened(order)}")
    values = [number(value, f"{name}[{index}]") for index, value in enumerate(order)]
    prompt = _asked(row.get("prompt"))
    said = [_answer(value, prompt, f"{where}[{index}]") for index, value in enumerate(given)]
    return Example(
        prompt=prompt,
        completions=said,
        scores=values if name == "scores" else [-value for value in values],
        used=("prompt", "completions", "answers", "ranks", "scores"),
    )


def ratings(row: Row) -> Example:
    """`prompt`, `completion` (or `response`) and a number, a thumb, or true or false."""
    column = next((name for name in RATING_COLUMNS if name in row), RATING_COLUMNS[0])
    answer = next((name for name in ANSWER_COLUMNS if name in row), ANSWER_COLUMNS[0])
    prompt = _asked(row.get("prompt"))
    said = _answer(row.get(answer), prompt, answer)
    return Example(
        prompt=prompt, completion=said, rating=rating(row.get(column), column), used=("prompt", answer, column)
    )


def _asked(prompt: Any) -> TextOrTurns:
    if isinstance(prompt, str) and prompt.lstrip().startswith("Human:"):
        turns = _dialogue(prompt, "prompt")
        return turns[:-1] if turns[-1].role == "assistant" and not turns[-1].content else turns
    given = text_or_turns(prompt, "prompt")
    return without_learn_marks(given) if isinstance(given, list) else given


def _answer(value: Any, prompt: TextOrTurns, field: str) -> TextOrTurns:
    """An answer in the form of its prompt: after a conversation, text becomes an assistant turn."""
    said = text_or_turns(value, field)
    if isinstance(said, list):
        if isinstance(prompt, str):
            raise RowError(field, "is a conversation, and the prompt is text")
        return check_whole_answer(check_last_is_answer(said, field), field)
    return as_turns(said, "assistant") if isinstance(prompt, list) else said


# Format -> the function that makes an `Example` of a row.
FORMATS: dict[str, Callable[[Row], Example]] = {
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "openai": openai,
    "openai_preference": openai_preference,
    "openai_rft": openai_rft,
    "hh": hh,
    "orca": orca,
    "message_pairs": message_pairs,
    "labelled_messages": openai,
    "ms_swift": ms_swift,
    "ms_swift_preference": ms_swift_preference,
    "ultrafeedback": ultrafeedback,
    "rankings": rankings,
    "ratings": ratings,
}


def maker(name: str, kind: str | None) -> Callable[[Row], Example]:
    """The function that makes an `Example` of a row of the format `name`, for the trainer `kind`."""
    if name == "sharegpt" and (kind is None or trainers.of(kind).reads == "prompts"):
        return partial(sharegpt, unanswered=True)
    return FORMATS[name]


def expected_columns(
    first: list[dict[str, Any]], make: Callable[[Row], Example], name: str, kind: str | None
) -> tuple[str, ...]:
    """The TRL columns that every row of the format `name` must give, as the first readable rows do."""
    made: list[list[str]] = []
    for row in first:
        with suppress(RowError):
            made.append(list(make(row).columns()))
    if not made or is_scored(made[0], name):
        return ()
    if kind is None:
        return ("messages",) if "messages" in made[0] else ("prompt",)
    accepted = ACCEPTS[trainers.of(kind).reads]
    found = next((needed for needed in accepted if any({*needed} <= {*columns} for columns in made)), None)
    return found or choose_columns(made[0], kind, name)
