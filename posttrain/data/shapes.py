"""The formats in which people have their data: told apart by columns and first rows, and turned into ours.

A row becomes columns of TRL (see `formats`), or one of two forms that the trainer decides on (see `judged`):
`prompt` + `completions` + `scores`, several answers, the higher the better; `prompt` + `completion` + `rating`.
Other columns stay. Sources: the data sets' cards and the documentation named in docs/data.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from posttrain.data import messages as m
from posttrain.data.files import Misfit
from posttrain.data.formats import PAIRS, TRL_COLUMNS

RATINGS = ("rating", "ratings", "stars", "thumb", "thumbs", "thumbs_up", "vote", "feedback")
ANSWERS = ("completion", "response")
UP = {"up": 1, "thumbs_up": 1, "👍": 1, "+1": 1, "good": 1, "like": 1}
DOWN = {"down": 0, "thumbs_down": 0, "👎": 0, "-1": 0, "bad": 0, "dislike": 0}

# The tones of a thumb's skin, and the mark that it is a picture.
_TONES = re.compile(
    "[\N{EMOJI MODIFIER FITZPATRICK TYPE-1-2}-\N{EMOJI MODIFIER FITZPATRICK TYPE-6}\N{VARIATION SELECTOR-16}]"
)

Row = dict[str, Any]


def detect(columns: Iterable[str], first: list[Row]) -> str:
    """The name of the format in `FORMATS`; `trl` where no other is recognised."""
    have, rows = set(columns), [row for row in first if isinstance(row, Mapping)]
    if {"input", "preferred_output", "non_preferred_output"} <= have:
        return "openai_preference"
    if have & {"conversations", "conversation"}:
        return "sharegpt"
    if {"instruction", "completions"} <= have:
        return "ultrafeedback"
    if "instruction" in have and ("output" in have or have >= set(PAIRS)):
        return "alpaca"
    if have >= set(PAIRS):
        return "hh" if any(_dialogue(row.get("chosen")) for row in rows) else "trl"
    if "prompt" in have and _ranked(have, rows):
        return "rankings"
    if "prompt" in have and have & set(ANSWERS) and have & set(RATINGS) and "label" not in have:
        return "ratings"
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


def _ranked(have: set[str], rows: list[Row]) -> bool:
    if "completions" in have and have & {"ranks", "scores"}:
        return True
    lists = (row["answers"] for row in rows if isinstance(row.get("answers"), list))
    return any(isinstance(answer, dict) and "rank" in answer for answers in lists for answer in answers)


def _openai(message: Any) -> bool:
    """Whether a message says something that TRL's own form does not: a weight, parts, arguments as a string."""
    if not isinstance(message, dict):
        return False
    calls = message.get("tool_calls") if isinstance(message.get("tool_calls"), list) else []
    functions = [call.get("function") for call in calls or [] if isinstance(call, dict)]
    as_text = any(isinstance(f, dict) and isinstance(f.get("arguments"), str) for f in functions)
    return message.get("weight") is not None or isinstance(message.get("content"), list) or as_text


def alpaca(row: Row) -> Row:
    """`instruction`, `input`, `output` (or `chosen` and `rejected`); `system` and `history` as in LLaMA-Factory."""
    asked = m.text(row.get("instruction"), "instruction")
    if more := m.text(row.get("input") or "", "input", empty=True).strip():
        asked = f"{asked}\n\n{more}"
    prompt = m.turn("system", m.text(row["system"], "system")) if row.get("system") else []
    history = row.get("history") or []
    for index, pair in enumerate(history if isinstance(history, list) else [history]):
        field = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise Misfit(field, f"expected a question and its answer, got {pair!r:.80}")
        prompt += m.turn("user", m.text(pair[0], field)) + m.turn("assistant", m.text(pair[1], field))
    answers = {"completion": "output"} if row.get("chosen") is None else {side: side for side in PAIRS}
    made = {ours: m.turn("assistant", m.text(row.get(theirs), theirs)) for ours, theirs in answers.items()}
    # In the published file `text` is the same again, rendered.
    rest = _rest(row, "instruction", "input", "output", "system", "history", "text")
    return {"prompt": prompt + m.turn("user", asked), **made, **rest}


def sharegpt(row: Row) -> Row:
    """`conversations` of `from` and `value`; with `chosen` and `rejected` turns, pairs."""
    column = "conversations" if row.get("conversations") is not None else "conversation"
    turns = m.sharegpt(row.get(column), column)
    if isinstance(row.get("system"), str) and row["system"].strip():
        turns = m.turn("system", row["system"]) + turns
    tools = _tools(row.get("tools"))
    rest = _rest(row, "conversations", "conversation", "system", "tools")
    if row.get("chosen") is not None:
        pair = {side: m.check_answered([m.sharegpt_turn(row.get(side), side)], side) for side in PAIRS}
        return {"prompt": turns, **pair, **tools, **rest}
    return {"messages": m.check_answered(turns, column), **tools, **rest}


def openai(row: Row) -> Row:
    """Fine-tuning by OpenAI's API: `messages`, `tools`, and a `weight` of 0 or 1 on assistant messages."""
    turns = m.openai(row.get("messages"), "messages")
    m.check_answered(turns, "messages")
    if not any(turn["role"] == "assistant" and turn.get("weight", 1) for turn in turns):
        raise Misfit("messages", "every assistant message has weight 0; nothing is learned from it")
    return {
        "messages": turns,
        **_tools(row.get("tools") or row.get("functions")),
        **_rest(row, "tools", "functions", "parallel_tool_calls"),
    }


def openai_preference(row: Row) -> Row:
    """`input.messages` (and `input.tools`), `preferred_output` and `non_preferred_output`, lists of messages."""
    given = row.get("input")
    if not isinstance(given, dict):
        raise Misfit("input", f"expected an object with messages, got {given!r:.80}")
    made: Row = {"prompt": _plain(m.openai(given.get("messages"), "input.messages"))}
    for ours, theirs in (("chosen", "preferred_output"), ("rejected", "non_preferred_output")):
        made[ours] = _plain(m.check_answered(m.openai(row.get(theirs), theirs), theirs))
    rest = _rest(row, "input", "preferred_output", "non_preferred_output")
    return {**made, **_tools(given.get("tools")), **rest}


def openai_rft(row: Row) -> Row:
    """Reinforcement fine-tuning: `messages` that end with the user's, and any other fields, for the grader."""
    turns = m.openai(row.get("messages"), "messages")
    if turns[-1]["role"] not in ("user", "system"):
        raise Misfit(f"messages[{len(turns) - 1}].role", "the last message must be the user's: the model answers it")
    return {"prompt": _plain(turns), **_tools(row.get("tools")), **_rest(row, "tools")}


def hh(row: Row) -> Row:
    """Anthropic's HH: `chosen` and `rejected` are whole dialogues, equal up to where they part."""
    both = {side: m.check_answered(m.anthropic(row.get(side), side), side) for side in PAIRS}
    same = 0
    for one, other in zip(both["chosen"][:-1], both["rejected"][:-1], strict=False):
        if one != other:
            break
        same += 1
    if not same:
        raise Misfit("chosen", "shares no first turn with rejected; pairs answer the same prompt")
    return {"prompt": both["chosen"][:same], **{side: both[side][same:] for side in PAIRS}, **_rest(row)}


def ultrafeedback(row: Row) -> Row:
    """UltraFeedback as published: `instruction`, `completions` with `response` and `overall_score`."""
    given, said, scores = row.get("completions"), [], []
    if not isinstance(given, list) or not given:
        raise Misfit("completions", f"expected a list of completions, got {given!r:.80}")
    for index, one in enumerate(given):
        field = f"completions[{index}]"
        if not isinstance(one, dict):
            raise Misfit(field, f"expected an object with response and overall_score, got {one!r:.80}")
        said.append(m.turn("assistant", m.text(one.get("response"), f"{field}.response")))
        name = "overall_score" if one.get("overall_score") is not None else "fine-grained_score"
        scores.append(number(one.get(name), f"{field}.{name}"))
    prompt = m.turn("user", m.text(row.get("instruction"), "instruction"))
    return {"prompt": prompt, "completions": said, "scores": scores, **_rest(row, "instruction", "completions")}


def rankings(row: Row) -> Row:
    """`completions` with `ranks` (1 is best) or `scores`; without either, best first; or Nectar's `answers`."""
    given, ranks, scores = row.get("completions"), row.get("ranks"), row.get("scores")
    where = "completions"
    if given is None and isinstance(answers := row.get("answers"), list):
        where = "answers"
        if not all(isinstance(answer, dict) for answer in answers):
            raise Misfit(where, f"expected objects with answer and rank, got {answers!r:.80}")
        given, ranks = [answer.get("answer") for answer in answers], [answer.get("rank") for answer in answers]
    if not isinstance(given, list) or len(given) < 2:
        raise Misfit(where, f"expected a list of at least two answers, got {given!r:.80}")
    name, order = ("scores", scores) if scores is not None else ("ranks", ranks)
    if order is None:
        order = list(range(1, len(given) + 1))
    if not isinstance(order, list) or len(order) != len(given):
        raise Misfit(name, f"expected {len(given)} numbers, one per answer, got {order!r:.80}")
    values = [number(value, f"{name}[{index}]") for index, value in enumerate(order)]
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.lstrip().startswith("Human:"):
        turns = m.anthropic(prompt, "prompt")
        prompt = turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns
    said = [_answer(value, prompt, f"{where}[{index}]") for index, value in enumerate(given)]
    return {
        "prompt": _asked(prompt),
        "completions": said,
        "scores": values if name == "scores" else [-value for value in values],
        **_rest(row, "completions", "answers", "ranks", "scores"),
    }


def ratings(row: Row) -> Row:
    """`prompt`, `completion` (or `response`) and a number, a thumb, or true or false."""
    column = next((name for name in RATINGS if name in row), RATINGS[0])
    answer = next((name for name in ANSWERS if name in row), ANSWERS[0])
    prompt = _asked(row.get("prompt"))
    said = _answer(row.get(answer), prompt, answer)
    rest = _rest(row, answer, column)
    return {"prompt": prompt, "completion": said, "rating": rating(row.get(column), column), **rest}


def rating(value: Any, field: str) -> float | bool:
    """A number, or whether it is good."""
    if isinstance(value, str):
        known = _TONES.sub("", value).strip().lower()
        if known in UP or known in DOWN:
            return known in UP
        if known in ("true", "false"):
            return known == "true"
    return value if isinstance(value, bool) else number(value, field)


def number(value: Any, field: str) -> float:
    try:
        found = float("nan") if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = float("nan")
    if found != found or abs(found) == float("inf"):
        raise Misfit(field, f"expected a number, got {value!r:.60}" if value is not None else "is missing")
    return found


def _asked(prompt: Any) -> Any:
    return m.text(prompt, "prompt") if not isinstance(prompt, list) else _plain(m.openai(prompt, "prompt"))


def _answer(value: Any, prompt: Any, field: str) -> Any:
    """An answer of the kind that its prompt is: a conversation's is an assistant turn."""
    if isinstance(value, list):
        turns = _plain(m.check_answered(m.openai(value, field), field))
        if not isinstance(prompt, list):
            raise Misfit(field, "is a conversation, and the prompt is text")
        return turns
    said = m.text(value, field)
    return m.turn("assistant", said.strip()) if isinstance(prompt, list) else said


def _plain(turns: list[Row]) -> list[Row]:
    return [{key: value for key, value in turn.items() if key != "weight"} for turn in turns]


def _tools(value: Any) -> Row:
    """Tools as a JSON string, which TRL parses: their parameters are of every shape."""
    if not (tools := m.parsed(value or [], "tools")):
        return {}
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Misfit("tools", f"expected a list of tools, got {tools!r:.80}")
    whole = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return {"tools": json.dumps(whole, ensure_ascii=False)}


def _rest(row: Row, *used: str) -> Row:
    return {name: value for name, value in row.items() if name not in used and name not in TRL_COLUMNS}


# What turns a row of each format into ours; TRL's own needs no turning.
FORMATS: dict[str, Callable[[Row], Row]] = {
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "openai": openai,
    "openai_preference": openai_preference,
    "openai_rft": openai_rft,
    "hh": hh,
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
    "openai": "OpenAI chat: messages; the loss is on assistant messages whose weight is not 0",
    "openai_preference": "OpenAI preferences: input, preferred_output, non_preferred_output",
    "openai_rft": "OpenAI reinforcement fine-tuning: messages to answer, other fields for the reward",
    "hh": "Anthropic HH: dialogues as one string",
    "ultrafeedback": "UltraFeedback: scored completions",
    "rankings": "rankings of several answers",
    "ratings": "rated answers",
}
