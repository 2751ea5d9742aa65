"""The formats in which people have their data: told apart by columns and first rows; each a function to an `Example`.

Sources: the data sets' cards and the documentation named in docs/data.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from posttrain.data import conversation as c
from posttrain.data.conversation import Example, Message, TextOrTurns, Turns
from posttrain.data.row import RowError

PAIRS = ("chosen", "rejected")
RATING_COLUMNS = ("rating", "ratings", "stars", "thumb", "thumbs", "thumbs_up", "vote", "feedback")
ANSWER_COLUMNS = ("completion", "response")
# Where a question stands beside chosen and rejected, in Orca's pairs and their kind.
QUESTION_COLUMNS = ("question", "query", "input")
THUMBS_UP = ("up", "thumbs_up", "👍", "+1", "good", "like", "true", "desirable")
THUMBS_DOWN = ("down", "thumbs_down", "👎", "-1", "bad", "dislike", "false", "undesirable")

# The tones of a thumb's skin, and the mark that it is a picture.
_TONES = re.compile(
    "[\N{EMOJI MODIFIER FITZPATRICK TYPE-1-2}-\N{EMOJI MODIFIER FITZPATRICK TYPE-6}\N{VARIATION SELECTOR-16}]"
)

Row = Mapping[str, Any]


def detect(columns: Iterable[str], first: list[dict[str, Any]]) -> str:
    """The name of the format in `FORMATS`; `trl` where no other is recognised."""
    have, rows = set(columns), [row for row in first if isinstance(row, Mapping)]
    if {"input", "preferred_output", "non_preferred_output"} <= have:
        return "openai_preference"
    if have & {"conversations", "conversation"}:
        return "sharegpt"
    if {"chosen_messages", "rejected_messages"} <= have or {"messages", "rejected_messages"} <= have:
        return "message_pairs"
    if "messages" in have and "rejected_response" in have:
        return "ms_swift_preference"
    if {"instruction", "completions"} <= have:
        return "ultrafeedback"
    if "instruction" in have and ({"output"} <= have or have >= set(PAIRS)):
        return "alpaca"
    if "prompt" not in have and "messages" not in have and have >= set(PAIRS) and have & set(QUESTION_COLUMNS):
        return "orca"
    if have >= set(PAIRS):
        return "hh" if any(_dialogue(row.get("chosen")) for row in rows) else "trl"
    if "prompt" in have and _ranked(have, rows):
        return "rankings"
    if "prompt" in have and have & set(ANSWER_COLUMNS) and have & set(RATING_COLUMNS) and "label" not in have:
        return "ratings"
    if {"messages", "label"} <= have and "completion" not in have:
        return "labelled_messages"
    if {"query", "response"} <= have and not have & {"prompt", "messages", "text"}:
        return "ms_swift"
    chats = [row["messages"] for row in rows if isinstance(row.get("messages"), list) and row["messages"]]
    if chats and not {"prompt", "text"} & have:
        asking = [isinstance(chat[-1], dict) and chat[-1].get("role") in ("user", "developer") for chat in chats]
        if 2 * sum(asking) > len(chats):  # one row that does not fit leaves the others what they are
            return "openai_rft"
        if any(_openai(message) for chat in chats for message in chat):
            return "openai"
    return "trl"


def _dialogue(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def _ranked(have: set[str], rows: list[dict[str, Any]]) -> bool:
    if "completions" in have and have & {"ranks", "scores"}:
        return True
    lists = (row["answers"] for row in rows if isinstance(row.get("answers"), list))
    return any(isinstance(answer, dict) and "rank" in answer for answers in lists for answer in answers)


def _openai(message: Any) -> bool:
    """Whether a message is written as OpenAI's API has it, and TRL's documentation has not."""
    if not isinstance(message, dict):
        return False
    calls = message.get("tool_calls") if isinstance(message.get("tool_calls"), list) else []
    functions = [call.get("function") for call in calls or [] if isinstance(call, dict)]
    as_text = any(isinstance(f, dict) and isinstance(f.get("arguments"), str) for f in functions)
    return message.get("weight") is not None or isinstance(message.get("content"), list) or as_text


def trl(row: Row, needed: tuple[str, ...], repeated: bool = False, prompted: bool = False) -> Example:
    """TRL's own columns, those of `needed`: text stays text, lists are conversations; `repeated` as in `ask`.

    `prompted`: rows have a column `prompt`, so that none takes it from what its answers begin with by chance.
    """
    if needed == ("messages",):
        return Example(messages=c.conversation(row.get("messages"), "messages"), used=needed)
    if needed == ("text",):
        asked = row["prompt"] if isinstance(row.get("prompt"), str) else None  # for samples; the text is learnt
        return Example(text=c.text(row.get("text"), "text"), prompt=asked, used=("text", "prompt"))
    given = ("prompt", *needed) if row.get("prompt") is not None or "prompt" in needed else needed
    prompt = c.text_or_turns(row.get("prompt"), "prompt") if "prompt" in given else None
    if needed == ("prompt",):
        return Example(prompt=_unmarked(prompt), used=needed)
    names = [name for name in needed if name not in ("prompt", "label")]
    answers: dict[str, Any] = {name: c.text_or_turns(row.get(name), name) for name in names}
    label = _label(row.get("label")) if "label" in needed else None
    if prompt is None and isinstance(row.get("messages"), list) and _begin_with_answers(answers):
        prompt, given = c.conversation(row["messages"], "messages"), (*given, "messages")  # as axolotl has pairs
    if prompt is None and prompted and all(isinstance(said, str) for said in answers.values()):
        raise RowError("prompt", "is missing")
    asked, answers = c.split_prompt(prompt, answers, repeated)
    return Example(prompt=asked, label=label, used=given, **answers)


def _begin_with_answers(answers: dict[str, Any]) -> bool:
    return all(isinstance(said, list) and said[0].role == "assistant" for said in answers.values())


def _unmarked(prompt: TextOrTurns | None) -> TextOrTurns | None:
    return c.without_learn_marks(prompt) if isinstance(prompt, list) else prompt


def _label(value: Any) -> bool:
    if (thumb := _thumb(value)) is not None:
        return thumb
    number = " (of numbers: 'data.columns={rating: label}' and data.threshold=LOWEST_GOOD_ONE)"
    given = number if isinstance(value, (int, float)) else ""
    raise RowError("label", f"expected true or false, got {c.shortened(value)}{given}")


def alpaca(row: Row) -> Example:
    """`instruction`, `input`, `output` (or `chosen` and `rejected`); `system` and `history` as in LLaMA-Factory."""
    asked = c.text(row.get("instruction"), "instruction")
    if more := c.text(row.get("input") or "", "input", empty=True).strip():
        asked = f"{asked}\n\n{more}"
    prompt = [*_history(row.get("history")), Message("user", asked)]
    theirs = {"completion": "output"}
    if row.get("chosen") is not None:
        theirs = {side: side for side in PAIRS}
    elif isinstance(row.get("output"), list) and len(row["output"]) == 2:  # LLaMA-Factory's older pairs
        row = {**row, "chosen": row["output"][0], "rejected": row["output"][1]}
        theirs = {side: side for side in PAIRS}
    answers: dict[str, Any] = {
        ours: [Message("assistant", c.text(row.get(name), name))] for ours, name in theirs.items()
    }
    # In the published file `text` is the same again, rendered.
    used = ("instruction", "input", "output", "history", "text", *theirs.values())
    return Example(prompt=prompt, used=used, **answers)


def _history(given: Any) -> Turns:
    """Earlier questions with their answers, in pairs."""
    turns: Turns = []
    for index, pair in enumerate(given if isinstance(given, list) else [given] if given else []):
        field = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(field, f"expected a question and its answer, got {c.shortened(pair)}")
        turns += [Message("user", c.text(pair[0], field)), Message("assistant", c.text(pair[1], field))]
    return turns


def sharegpt(row: Row) -> Example:
    """`conversations` of `from` and `value`; with `chosen` and `rejected` turns, pairs; with `label`, KTO's rows."""
    column = "conversations" if row.get("conversations") is not None else "conversation"
    turns = c.conversation(row.get(column), column, "turns")
    used = ("conversations", "conversation")
    if row.get("chosen") is not None:
        pair = {side: _reply(row.get(side), side) for side in PAIRS}
        prompt, answers = c.split_prompt(turns, pair)
        return Example(prompt=prompt, used=(*used, *PAIRS), **answers)
    c.check_last_is_answer(turns, column)
    if isinstance(row.get("label"), bool):
        return _labelled(turns, row["label"], column, (*used, "label"))
    return Example(messages=turns, used=used)


def _reply(given: Any, field: str) -> Turns:
    """An answer as one turn of any writing, or a list of them, or text."""
    if isinstance(given, Mapping):
        return [c.message(given, field)]
    return c.as_turns(c.text_or_turns(given, field), "assistant")


def _labelled(turns: Turns, label: bool, field: str, used: tuple[str, ...]) -> Example:
    prompt, answers = c.split_prompt(turns[:-1], {"completion": c.check_last_is_answer(turns[-1:], field)})
    return Example(prompt=prompt, completion=answers["completion"], label=label, used=used)


def labelled_messages(row: Row) -> Example:
    """`messages` whose last one is labelled good or bad, as LLaMA-Factory and ms-swift have KTO's rows."""
    turns = c.check_last_is_answer(c.conversation(row.get("messages"), "messages"), "messages")
    return _labelled(turns, _label(row.get("label")), "messages", ("messages", "label"))


def message_pairs(row: Row) -> Example:
    """`chosen_messages` (or `messages`) and `rejected_messages`: whole conversations that part at an answer."""
    better = "chosen_messages" if row.get("chosen_messages") is not None else "messages"
    theirs = {"chosen": better, "rejected": "rejected_messages"}
    prompt, answers = c.split_prompt(None, {side: c.conversation(row.get(name), name) for side, name in theirs.items()})
    return Example(prompt=prompt, used=tuple(theirs.values()), **answers)


def ms_swift_preference(row: Row) -> Example:
    """ms-swift's pairs: `messages`, and `rejected_response`, the worse last answer."""
    turns = c.check_last_is_answer(c.conversation(row.get("messages"), "messages"), "messages")
    rejected = _reply(row.get("rejected_response"), "rejected_response")
    prompt, answers = c.split_prompt(turns[:-1], {"chosen": turns[-1:], "rejected": rejected})
    return Example(prompt=prompt, used=("messages", "rejected_response"), **answers)


def ms_swift(row: Row) -> Example:
    """ms-swift's older rows: `query`, `response`, `history`, `system`; with `rejected_response`, pairs."""
    prompt = [*_history(row.get("history")), Message("user", c.text(row.get("query"), "query"))]
    said: Turns = [Message("assistant", c.text(row.get("response"), "response"))]
    used = ("query", "response", "history")
    if row.get("rejected_response") is None:
        return Example(prompt=prompt, completion=said, used=used)
    rejected = [Message("assistant", c.text(row["rejected_response"], "rejected_response"))]
    return Example(prompt=prompt, chosen=said, rejected=rejected, used=(*used, "rejected_response"))


def orca(row: Row) -> Example:
    """A question, `chosen`, `rejected`, and `system`, as in Orca's pairs: a conversation."""
    column = next(name for name in (*QUESTION_COLUMNS, "question") if name in row or name == "question")
    asked = c.as_turns(c.text_or_turns(row.get(column), column), "user")
    prompt, answers = c.split_prompt(asked, {side: c.text_or_turns(row.get(side), side) for side in PAIRS})
    return Example(prompt=prompt, used=(column, *PAIRS), **answers)


def openai(row: Row) -> Example:
    """Fine-tuning by OpenAI's API: `messages`, `tools`, and a `weight` of 0 or 1 on assistant messages."""
    turns = c.check_last_is_answer(c.conversation(row.get("messages"), "messages"), "messages")
    return Example(messages=turns, used=("messages",))


def openai_preference(row: Row) -> Example:
    """`input.messages` (and `input.tools`), `preferred_output` and `non_preferred_output`, lists of messages."""
    given = row.get("input")
    if not isinstance(given, Mapping):
        raise RowError("input", f"expected an object with messages, got {c.shortened(given)}")
    asked = c.conversation(given.get("messages"), "input.messages")
    theirs = {"chosen": "preferred_output", "rejected": "non_preferred_output"}
    answers = {ours: c.check_last_is_answer(c.conversation(row.get(name), name), name) for ours, name in theirs.items()}
    prompt, split = c.split_prompt(asked, dict(answers))
    return Example(prompt=prompt, tools=c.tools(given.get("tools")), used=("input", *theirs.values()), **split)


def openai_rft(row: Row) -> Example:
    """Reinforcement fine-tuning: `messages` that end with the user's, and any other fields, for the grader."""
    turns = c.without_learn_marks(c.conversation(row.get("messages"), "messages"))
    if turns[-1].role not in ("user", "system"):
        raise RowError(f"messages[{len(turns) - 1}].role", "the last message must be the user's: the model answers it")
    return Example(prompt=turns, used=("messages",))


def hh(row: Row) -> Example:
    """Anthropic's HH: `chosen` and `rejected` are whole dialogues, equal up to where they part."""
    prompt, answers = c.split_prompt(
        None, {side: c.check_last_is_answer(c.parse_dialogue(row.get(side), side), side) for side in PAIRS}
    )
    return Example(prompt=prompt, used=PAIRS, **answers)


def ultrafeedback(row: Row) -> Example:
    """UltraFeedback as published: `instruction`, `completions` with `response` and `overall_score`."""
    given = row.get("completions")
    if not isinstance(given, list) or not given:
        raise RowError("completions", f"expected a list of completions, got {c.shortened(given)}")
    said: list[TextOrTurns] = []
    scores = []
    for index, one in enumerate(given):
        field = f"completions[{index}]"
        if not isinstance(one, Mapping):
            raise RowError(field, f"expected an object with response and overall_score, got {c.shortened(one)}")
        said.append([Message("assistant", c.text(one.get("response"), f"{field}.response"))])
        name = "overall_score" if one.get("overall_score") is not None else "fine-grained_score"
        scores.append(number(one.get(name), f"{field}.{name}"))
    prompt = [Message("user", c.text(row.get("instruction"), "instruction"))]
    return Example(prompt=prompt, completions=said, scores=scores, used=("instruction", "completions"))


def rankings(row: Row) -> Example:
    """`completions` with `ranks` (1 is best) or `scores`; without either, best first; or Nectar's `answers`."""
    given, ranks, scores = row.get("completions"), row.get("ranks"), row.get("scores")
    where = "completions"
    if given is None and isinstance(answers := row.get("answers"), list):
        where = "answers"
        if not all(isinstance(answer, Mapping) for answer in answers):
            raise RowError(where, f"expected objects with answer and rank, got {c.shortened(answers)}")
        given, ranks = [answer.get("answer") for answer in answers], [answer.get("rank") for answer in answers]
    elif given is None and "answers" in row:
        where, given = "answers", row["answers"]
    if not isinstance(given, list) or len(given) < 2:
        raise RowError(where, f"expected a list of at least two answers, got {c.shortened(given)}")
    name, order = ("scores", scores) if scores is not None else ("ranks", ranks)
    if order is None:
        order = list(range(1, len(given) + 1))
    if not isinstance(order, list) or len(order) != len(given):
        raise RowError(name, f"expected {len(given)} numbers, one per answer, got {c.shortened(order)}")
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


def rating(value: Any, field: str) -> float | bool:
    """A number, or whether it is good."""
    thumb = _thumb(value)
    return number(value, field) if thumb is None else thumb


def _thumb(value: Any) -> bool | None:
    """Whether it is good, of a boolean or a word or picture for one; `None` for anything else."""
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


def _asked(prompt: Any) -> TextOrTurns:
    if _opens(prompt):
        turns = c.parse_dialogue(prompt, "prompt")
        return turns[:-1] if turns[-1].role == "assistant" and not turns[-1].content else turns
    given = c.text_or_turns(prompt, "prompt")
    return c.without_learn_marks(given) if isinstance(given, list) else given


def _opens(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def _answer(value: Any, prompt: TextOrTurns, field: str) -> TextOrTurns:
    """An answer of the kind that its prompt is: a conversation's is an assistant turn."""
    said = c.text_or_turns(value, field)
    if isinstance(said, list):
        if isinstance(prompt, str):
            raise RowError(field, "is a conversation, and the prompt is text")
        return c.check_whole_answer(c.check_last_is_answer(said, field), field)
    return c.as_turns(said, "assistant") if isinstance(prompt, list) else said


# What makes an `Example` of a row of each format; `trl` also takes the columns that the trainer needs.
FORMATS: dict[str, Callable[[Row], Example]] = {
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "openai": openai,
    "openai_preference": openai_preference,
    "openai_rft": openai_rft,
    "hh": hh,
    "orca": orca,
    "message_pairs": message_pairs,
    "labelled_messages": labelled_messages,
    "ms_swift": ms_swift,
    "ms_swift_preference": ms_swift_preference,
    "ultrafeedback": ultrafeedback,
    "rankings": rankings,
    "ratings": ratings,
}
NAMES = ("auto", "trl", *FORMATS)
# What a row of each is, for a person.
ABOUT = {
    "trl": "TRL's columns",
    "alpaca": "Alpaca: instruction, input, output",
    "sharegpt": "ShareGPT: conversations of from and value",
    "openai": "OpenAI chat: messages",
    "openai_preference": "OpenAI preferences: input, preferred_output, non_preferred_output",
    "openai_rft": "OpenAI reinforcement fine-tuning: messages to answer, other fields for the reward",
    "hh": "Anthropic HH: dialogues as one string",
    "orca": "Orca pairs: a question, chosen, rejected, and system",
    "message_pairs": "pairs of whole conversations: chosen_messages and rejected_messages",
    "labelled_messages": "messages whose last answer is labelled",
    "ms_swift": "ms-swift: query, response, history",
    "ms_swift_preference": "ms-swift: messages and rejected_response",
    "ultrafeedback": "UltraFeedback: scored completions",
    "rankings": "rankings of several answers",
    "ratings": "rated answers",
}
