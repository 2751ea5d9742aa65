"""Detection of a data format by columns and first rows."""

from typing import Any

from posttrain.data.formats import ANSWER_COLUMNS, PAIRS, QUESTION_COLUMNS, RATING_COLUMNS

# Format -> sets of columns; it is recognised by any of them. The first that fits is taken.
BY_COLUMNS: dict[str, list[set[str]]] = {
    "openai_preference": [{"input", "preferred_output", "non_preferred_output"}],
    "sharegpt": [{"conversations"}, {"conversation"}],
    "message_pairs": [{"chosen_messages", "rejected_messages"}, {"messages", "rejected_messages"}],
    "ms_swift_preference": [{"messages", "rejected_response"}],
    "ultrafeedback": [{"instruction", "completions"}],
    "alpaca": [{"instruction", "output"}, {"instruction", *PAIRS}],
}


def detect(have: set[str], first: list[dict[str, Any]]) -> str:
    """The name of the format of rows with the columns `have`; `trl` where no other is recognised."""
    for name, sets in BY_COLUMNS.items():
        if any(columns <= have for columns in sets):
            return name
    if {*PAIRS} <= have:
        if have & {*QUESTION_COLUMNS} and not have & {"prompt", "messages"}:
            return "orca"
        return "hh" if any(_dialogue(row.get("chosen")) for row in first) else "trl"
    if "prompt" in have and (("completions" in have and have & {"ranks", "scores"}) or _has_ranks(first)):
        return "rankings"
    if "prompt" in have and have & {*ANSWER_COLUMNS} and have & {*RATING_COLUMNS} and "label" not in have:
        return "ratings"
    if {"messages", "label"} <= have and "completion" not in have:
        return "labelled_messages"
    if {"query", "response"} <= have and not have & {"prompt", "messages", "text"}:
        return "ms_swift"
    chats = [row["messages"] for row in first if isinstance(row.get("messages"), list) and row["messages"]]
    if not chats or have & {"prompt", "text"}:
        return "trl"
    asking = [isinstance(chat[-1], dict) and chat[-1].get("role") in ("user", "developer") for chat in chats]
    if 2 * sum(asking) > len(chats):  # the majority decides, since single rows may be wrong
        return "openai_rft"
    return "openai" if any(_openai(message) for chat in chats for message in chat) else "trl"


def _dialogue(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def _has_ranks(first: list[dict[str, Any]]) -> bool:
    lists = (row["answers"] for row in first if isinstance(row.get("answers"), list))
    return any(isinstance(answer, dict) and "rank" in answer for answers in lists for answer in answers)


def _openai(message: Any) -> bool:
    """Whether a message has features of OpenAI's API that TRL's documentation does not have."""
    if not isinstance(message, dict):
        return False
    calls = message["tool_calls"] if isinstance(message.get("tool_calls"), list) else []
    functions = [call.get("function") for call in calls if isinstance(call, dict)]
    as_text = any(isinstance(one, dict) and isinstance(one.get("arguments"), str) for one in functions)
    return message.get("weight") is not None or isinstance(message.get("content"), list) or as_text
