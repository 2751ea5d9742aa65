"""Messages in all known forms (OpenAI, ShareGPT, and those of other trainers), read into `Message`s.

Only this module checks roles, contents, reasoning, tool calls, names and the keys that say what is learnt. A message
that it cannot read raises `RowError` with the field.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from posttrain.data.example import REASONING_KEYS, Example
from posttrain.data.formats import ROW_SETTINGS, TOOLS
from posttrain.data.json_values import parse_json, parse_json_string
from posttrain.data.row import RowError, shortened, text
from posttrain.data.turns import Message, TextOrTurns, Turns, as_turns

# The names under which roles are written (OpenAI, ShareGPT, FastChat, axolotl, LLaMA-Factory, ms-swift), and ours.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response", "ipython"), "tool"),
}
# A turn that is a call of tools, written as JSON.
TOOL_CALL_ROLES = ("function_call", "tool_call")
# The keys that say whether a message is learnt.
LEARN_KEYS = ("weight", "train", "training", "loss", "loss_weight")
# Keys that mark parts of a message as learnt, which no trainer here supports.
PARTIAL_LEARN_KEYS = ("train_detail", "training_detail")
MEDIA = ("image", "images", "image_url", "video", "videos", "audio", "audios", "input_audio")
# The keys of a message that are read; the plan lists the others.
READ = {
    *("role", "from", "content", "value", "name", "tool_call_id", "tool_calls", "function_call"),
    *(REASONING_KEYS + LEARN_KEYS),
}
# Messages inside a string, as JSON or as Python or numpy print them: their beginning, and their keys in either order.
_LIST = re.compile(r"\s*(?:array\()?\s*\[?\s*\{")
_KEYS = re.compile(r"""(["'])(?:role|from)\1\s*:.*(["'])(?:content|value)\2\s*:""", re.DOTALL)
_KEYS_REVERSED = re.compile(r"""(["'])(?:content|value)\1\s*:.*(["'])(?:role|from)\2\s*:""", re.DOTALL)
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


def text_or_turns(value: Any, field: str) -> TextOrTurns:
    """Text or a conversation; messages in a string (a cell of a CSV file) are one too."""
    if isinstance(value, str):
        value = _messages_in(value, field)
    if isinstance(value, str) or value is None:
        return text(value, field)
    if isinstance(value, Mapping) and ("content" in value or "value" in value):
        return [message(value, field)]
    if not isinstance(value, list):
        raise RowError(field, f"expected text or a list of messages, got {shortened(value)}")
    return conversation(value, field)


def _messages_in(value: str, field: str) -> Any:
    """The messages that a string holds as JSON, one or a list; any other text as it is.

    Raises `RowError` for messages as Python prints them, and for broken JSON of messages.
    """
    if not _LIST.match(value) or not (found := _KEYS.search(value) or _KEYS_REVERSED.search(value)):
        return value
    try:
        given = parse_json(value)
    except RowError as row_error:
        if found[1] == "'":
            raise RowError(field, f"is a list as Python prints it; write it as JSON, got {shortened(value)}") from None
        if value.lstrip().startswith("{"):
            return value  # an object may be a text
        raise RowError(field, f"{row_error.reason}, got {shortened(value)}") from None
    if isinstance(given, list):
        alike = [isinstance(one, Mapping) and _keys(one)[0] in one and _keys(one)[1] in one for one in given]
        return given if all(alike) else value
    return given if isinstance(given, Mapping) and given.get(_keys(given)[0]) in [*ROLES] else value


def conversation(value: Any, field: str, what: str = "messages") -> Turns:
    """A list of messages in any known form; a text turn is merged with a following turn that only calls tools.

    Raises `RowError` with the field of the first message that is not understood.
    """
    if isinstance(value, str):
        value = _messages_in(value, field)
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_json_string(value, field)
    if not isinstance(value, list):
        raise RowError(field, f"expected a list of {what}, got {shortened(value)}")
    if not value:
        raise RowError(field, "is an empty conversation")
    made: Turns = []
    for index, one in enumerate(value):
        turn = message(one, f"{field}[{index}]")
        calls_only = turn.calls and not turn.content and turn.role == "assistant"
        written_as_call = isinstance(one, Mapping) and one.get("from", one.get("role")) in TOOL_CALL_ROLES
        if calls_only and made and made[-1].role == "assistant" and written_as_call:
            before = made.pop()  # text and call are one turn; as two, EOS would be learnt between them
            marks = [mark for mark in (before.learn, turn.learn) if mark is not None]
            turn = replace(before, calls=before.calls + turn.calls, learn=all(marks) if marks else None)
        made.append(turn)
    return made


def _keys(given: Mapping[str, Any]) -> tuple[str, str]:
    """The keys under which a message has its role and its content."""
    return "from" if "from" in given else "role", "value" if "value" in given and "content" not in given else "content"


def message(given: Any, field: str) -> Message:
    """One message of `role` and `content`, or of `from` and `value`."""
    whose, what = _keys(given) if isinstance(given, Mapping) else ("role", "content")
    if not isinstance(given, Mapping) or whose not in given:
        raise RowError(field, f"expected a message with role and content (or from and value), got {shortened(given)}")
    if given.get("value") is not None and given.get("content") not in (None, given["value"]):
        raise RowError(field, "has different texts in content and value; one of them would be lost")
    name = given[whose]
    if name in TOOL_CALL_ROLES:
        calls = _calls(parse_json_string(given.get(what), f"{field}.{what}"), f"{field}.{what}")
        return Message("assistant", calls=calls, learn=_learn_mark(given, "assistant", field))
    if not isinstance(name, str) or name not in ROLES:
        known = "human, gpt, system or tool" if whose == "from" else "system, user, assistant or tool"
        raise RowError(f"{field}.{whose}", f"expected {known}, got {shortened(name)}")
    role = ROLES[name]
    for key in (*MEDIA, *TOOLS):
        if given.get(key):
            why = "is not text, and the model reads text only" if key in MEDIA else "belongs to the row: a column tools"
            raise RowError(f"{field}.{key}", why)
    content, reasoning, calls = _content(given.get(what), f"{field}.{what}")
    reasoning = _reasoning(given, content, reasoning, field)
    for key in ("function_call", "tool_calls"):
        if called := parse_json_string(given.get(key) or None, f"{field}.{key}"):
            calls += _calls(called, f"{field}.{key}")
    if calls and role != "assistant":
        raise RowError(f"{field}.tool_calls", f"only the assistant calls tools, and the role is {name}")
    if reasoning is not None and role != "assistant":
        raise RowError(field, f"only the assistant reasons, and the role is {name}")
    known_as = {
        ours: text(given[key], f"{field}.{key}")
        for ours, key in (("name", "name"), ("call_id", "tool_call_id"))
        if given.get(key) not in (None, "")
    }
    made = Message(role, content, reasoning, calls, learn=_learn_mark(given, role, field), **known_as)
    if role == "assistant" and not made.has_content:
        raise RowError(f"{field}.{what}" if what in given else field, "an assistant turn is empty")
    if role == "user" and not content.strip():
        raise RowError(f"{field}.{what}", "is missing" if given.get(what) is None else "is empty")
    if given.get(what) is None and role in ("system", "tool"):
        raise RowError(f"{field}.{what}", "is missing")
    return made


def _reasoning(given: Mapping[str, Any], content: str, parts: str | None, field: str) -> str | None:
    """The reasoning of a message, which may be under several keys, or in the content, if it is the same there."""
    found = {"content": parts} if parts and parts.strip() else {}
    for key in REASONING_KEYS:
        if given.get(key) is not None and text(given[key], f"{field}.{key}", empty=True).strip():
            found[key] = given[key]
    inline = _THOUGHT.match(content)
    if found and inline:
        found["<think> in its content"] = inline[1]
    if len({one.strip() for one in found.values()}) > 1:
        raise RowError(field, f"has different reasoning in {' and '.join(found)}; one of them would be lost")
    return None if inline else next(iter(found.values()), None)


def unread(value: Any) -> set[str]:
    """The keys of the messages in a raw column that are not read."""
    if not isinstance(value, list):
        return set()
    messages = [one for one in value if isinstance(one, Mapping) and ("role" in one or "from" in one)]
    return {
        key for one in messages for key, given in one.items() if key not in READ and given not in (None, "", [], {})
    }


def _content(value: Any, field: str) -> tuple[str, str | None, tuple[dict[str, Any], ...]]:
    """Text, reasoning and tool calls of a message's content, which may be a list of parts."""
    if value is None:
        return "", None, ()
    if isinstance(value, str):
        if value.lstrip().startswith("[{'type'"):
            raise RowError(field, f"is a list as Python prints it; write it as JSON, got {shortened(value)}")
        return value, None, ()
    from posttrain.data import content_parts

    return content_parts.read(value, field)


def _learn_mark(given: Mapping[str, Any], role: str, field: str) -> bool | None:
    """Whether the message is learnt, as one of `LEARN_KEYS` says: 0 and 1, or false and true."""
    for key in PARTIAL_LEARN_KEYS:
        if given.get(key):
            raise RowError(f"{field}.{key}", "marks parts of a message; only whole messages are learnt or not (weight)")
    learn: bool | None = None
    for key in LEARN_KEYS:
        value = given.get(key)
        if value is None:
            continue
        if isinstance(value, (list, dict, str)) or value not in (0, 1):
            raise RowError(f"{field}.{key}", f"expected 0 or 1, got {shortened(value)}")
        if value and role != "assistant":
            raise RowError(f"{field}.{key}", f"only assistant messages are learnt, and the role is {role}")
        if learn is not None and learn != bool(value):
            raise RowError(f"{field}.{key}", "another mark of the message says the opposite")
        learn = bool(value)
    return learn if role == "assistant" else None


def _calls(given: Any, field: str) -> tuple[dict[str, Any], ...]:
    from posttrain.data import tools

    return tools.calls(given, field)


def conversational(row: Example) -> Example:
    """The row with text as turns: an instruct model needs its chat template, which renders conversations only."""
    if row.prompt is None:
        return row
    answers = {name: getattr(row, name) for name in ("completion", "chosen", "rejected")}
    made: dict[str, Any] = {name: said and as_turns(said, "assistant") for name, said in answers.items()}
    several: Any = row.completions and [as_turns(one, "assistant") for one in row.completions]
    return replace(row, prompt=as_turns(row.prompt, "user"), completions=several, **made)


def with_row_settings(example: Example, turns: Turns, row: Mapping[str, Any]) -> Example:
    """A conversation with the other columns of its row that belong to it: system prompt, tools, template options.

    `turns` are its first ones. Plain text is not rendered by a template, so it has none of them.
    """
    given = row.get("chat_template_kwargs")
    options = parse_json_string(None if given == "" else given, "chat_template_kwargs")
    if options is not None and not isinstance(options, dict):
        raise RowError("chat_template_kwargs", f"expected an object, got {shortened(options)}")
    found = replace(example, used=(*example.used, *ROW_SETTINGS), template_options=options)
    name = next((name for name in TOOLS if row.get(name)), "tools")
    if example.tools is None and (given := row.get(name)):
        from posttrain.data import tools

        found = replace(found, tools=tools.schemas(given, name))
    system = row.get("system")
    if not system or not text(system, "system", empty=True).strip():
        return found
    if turns[0].role == "system":
        if turns[0].content.strip() != system.strip():
            raise RowError("system", "differs from the system turn that the conversation has; a row has one of them")
        return found
    opening = [Message("system", system), *turns]
    return replace(found, prompt=opening) if example.messages is None else replace(found, messages=opening)
