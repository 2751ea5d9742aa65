"""Other people's conversations as the messages that chat templates take: `role`, `content`, `tool_calls`."""

from __future__ import annotations

import re
from typing import Any

from posttrain.data.files import Misfit, value_of

Message = dict[str, Any]
# ShareGPT's names, as its exports, FastChat, Axolotl and LLaMA-Factory write them.
SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "function_call"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
}
# `developer` is OpenAI's newer name of the system's messages; templates know the older.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_TURN = re.compile(r"\n\n(Human|Assistant):")


def text(value: Any, field: str, empty: bool = False) -> str:
    """`value`, where it is text; raises `Misfit` otherwise, and for none of it unless `empty`."""
    if not isinstance(value, str):
        raise Misfit(field, f"expected text, got {_short(value)}" if value is not None else "is missing")
    if not value.strip() and not empty:
        raise Misfit(field, "is empty")
    return value


def turn(role: str, content: str) -> list[Message]:
    return [{"role": role, "content": content}]


def openai(value: Any, field: str) -> list[Message]:
    """OpenAI's chat messages: parts joined, arguments of calls as objects, `weight` (0 or 1) kept where given."""
    if not isinstance(value, list) or not value:
        raise Misfit(field, f"expected a list of messages, got {_short(value)}")
    return [_openai_message(message, f"{field}[{index}]") for index, message in enumerate(value)]


def _openai_message(message: Any, field: str) -> Message:
    if not isinstance(message, dict) or "role" not in message:
        raise Misfit(field, f"expected a message with role and content, got {_short(message)}")
    role = message["role"]
    if not isinstance(role, str) or role not in ROLES:
        raise Misfit(f"{field}.role", f"expected {', '.join(ROLES)}, got {_short(role)}")
    calls = message.get("tool_calls") or []
    if message.get("function_call"):
        calls = [{"type": "function", "function": message["function_call"]}]
    made: Message = {"role": ROLES[role], "content": _content(message.get("content"), f"{field}.content", bool(calls))}
    if calls:
        if role != "assistant":
            raise Misfit(f"{field}.tool_calls", f"only the assistant calls tools, and the role is {role}")
        made["tool_calls"] = _calls(calls, f"{field}.tool_calls")
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            made[key] = text(message[key], f"{field}.{key}")
    if message.get("weight") is not None:
        if message["weight"] not in (0, 1):
            raise Misfit(f"{field}.weight", f"expected 0 or 1, got {_short(message['weight'])}")
        if role != "assistant":
            raise Misfit(f"{field}.weight", f"only assistant messages have one, and the role is {role}")
        made["weight"] = int(message["weight"])
    return made


def _content(value: Any, field: str, calls: bool) -> str:
    if isinstance(value, list):
        parts = []
        for index, part in enumerate(value):
            if not isinstance(part, dict) or part.get("type") != "text":
                kind = part.get("type") if isinstance(part, dict) else part
                raise Misfit(f"{field}[{index}]", f"expected a part of type text, got {_short(kind)}")
            parts.append(text(part.get("text"), f"{field}[{index}].text", empty=True))
        value = "".join(parts)
    if value is None and calls:
        return ""
    return text(value, field, empty=calls)


def _calls(calls: Any, field: str) -> list[dict[str, Any]]:
    made = []
    for index, call in enumerate(calls if isinstance(calls, list) else [calls]):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Misfit(f"{field}[{index}]", f"expected a call with function.name, got {_short(call)}")
        arguments = parsed(function.get("arguments") or {}, f"{field}[{index}].function.arguments")
        if not isinstance(arguments, dict):
            raise Misfit(f"{field}[{index}].function.arguments", f"expected an object, got {_short(arguments)}")
        known = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        made.append({**known, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return made


def parsed(value: Any, field: str) -> Any:
    """JSON inside a string, as an object; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return value_of(value)
    except Misfit as misfit:
        raise Misfit(field, f"{misfit.reason}, got {_short(value)}") from None


def sharegpt(value: Any, field: str) -> list[Message]:
    """ShareGPT's turns of `from` and `value`; calls of tools, as LLaMA-Factory writes them, become `tool_calls`."""
    if not isinstance(value, list) or not value:
        raise Misfit(field, f"expected a list of turns, got {_short(value)}")
    return [sharegpt_turn(one, f"{field}[{index}]") for index, one in enumerate(value)]


def sharegpt_turn(one: Any, field: str) -> Message:
    if isinstance(one, dict) and one.keys() >= {"role", "content"}:  # as in LMSYS-Chat-1M and WildChat
        one = {"from": one["role"], "value": one["content"]}
    if not isinstance(one, dict) or "from" not in one or "value" not in one:
        raise Misfit(field, f"expected a turn with from and value, or role and content, got {_short(one)}")
    speaker = one["from"]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise Misfit(f"{field}.from", f"expected human, gpt, system or tool, got {_short(speaker)}")
    said = text(one["value"], f"{field}.value")
    if speaker != "function_call":
        return {"role": SPEAKERS[speaker], "content": said}
    call = parsed(said, f"{field}.value")
    calls = [{"function": each} for each in (call if isinstance(call, list) else [call])]
    return {"role": "assistant", "content": "", "tool_calls": _calls(calls, f"{field}.value")}


def anthropic(value: Any, field: str) -> list[Message]:
    """A dialogue in one string, as in Anthropic's HH: turns opened by two newlines and `Human:` or `Assistant:`."""
    pieces = _TURN.split("\n\n" + text(value, field).lstrip())
    if len(pieces) < 3 or pieces[0].strip():
        raise Misfit(field, f"expected turns opened by '\\n\\nHuman:' and '\\n\\nAssistant:', got {_short(value)}")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return [{"role": roles[name], "content": said.strip()} for name, said in turns]


def check_answered(messages: list[Message], field: str) -> list[Message]:
    """`messages`, whose last one must be the assistant's, and say or call something."""
    last = messages[-1]
    if last["role"] != "assistant":
        raise Misfit(f"{field}[{len(messages) - 1}]", f"the last message is the {last['role']}'s; nothing is answered")
    if not last["content"] and not last.get("tool_calls"):
        raise Misfit(f"{field}[{len(messages) - 1}]", "an assistant turn is empty")
    return messages


def _short(value: Any) -> str:
    return f"{value!r:.80}"
