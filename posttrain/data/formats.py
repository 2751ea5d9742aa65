"""The names of the data formats, and detection of a format by columns and first rows."""

from collections.abc import Iterable, Mapping
from typing import Any

PAIRS = ("chosen", "rejected")
RATING_COLUMNS = ("rating", "ratings", "stars", "thumb", "thumbs", "thumbs_up", "vote", "feedback")
ANSWER_COLUMNS = ("completion", "response")
# Columns that hold the question in Orca's pairs and similar ones, next to chosen and rejected.
QUESTION_COLUMNS = ("question", "query", "input")
# Columns with tools; they belong to conversations, since plain text is not rendered by a template.
TOOLS = ("tools", "functions")
ROW_SETTINGS = {"system", *TOOLS, "parallel_tool_calls", "chat_template_kwargs"}
# Columns of a row with several scored answers, or one rated answer, before they are converted for the trainer.
SCORED_COLUMNS = ("completions", "scores")
RATED_COLUMNS = ("completion", "rating")
# What a trainer reads (`Kind.reads`) -> the sets of columns it can be given, best first; the last ones are converted.
ACCEPTS: dict[str, list[tuple[str, ...]]] = {
    "text": [("messages",), ("prompt", "completion"), ("text",), PAIRS],
    "messages": [("messages",), ("prompt", "completion"), PAIRS],
    "pairs": [PAIRS],
    "triples": [(*PAIRS, "reference")],
    "labels": [("prompt", "completion", "label"), ("messages", "label"), PAIRS],
    "prompts": [("prompt",), PAIRS, ("messages",)],
    "advised": [("prompt", "privileged_context")],
}
# Number of first rows from which the format is detected.
DETECTION_ROWS = 200


def detect(columns: Iterable[str], first: list[dict[str, Any]]) -> str:
    """The name of the format, one of `NAMES`; `trl` where no other is recognised."""
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
        if 2 * sum(asking) > len(chats):  # the majority decides, since single rows may be wrong
            return "openai_rft"
        if any(_openai(message) for chat in chats for message in chat):
            return "openai"
    return "trl"


def is_scored(columns: list[str], name: str) -> bool:
    """Whether rows of the format `name` hold scored or rated answers, which are converted for the trainer."""
    return name in ("ultrafeedback", "rankings", "ratings") and bool({"scores", "rating"} & set(columns))


def _dialogue(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def _ranked(have: set[str], rows: list[dict[str, Any]]) -> bool:
    if "completions" in have and have & {"ranks", "scores"}:
        return True
    lists = (row["answers"] for row in rows if isinstance(row.get("answers"), list))
    return any(isinstance(answer, dict) and "rank" in answer for answers in lists for answer in answers)


def _openai(message: Any) -> bool:
    """Whether a message has features of OpenAI's API that TRL's documentation does not have."""
    if not isinstance(message, dict):
        return False
    calls = message.get("tool_calls") if isinstance(message.get("tool_calls"), list) else []
    functions = [call.get("function") for call in calls or [] if isinstance(call, dict)]
    as_text = any(isinstance(f, dict) and isinstance(f.get("arguments"), str) for f in functions)
    return message.get("weight") is not None or isinstance(message.get("content"), list) or as_text


# Format -> its description in messages.
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
NAMES = ("auto", *ABOUT)
# Settings of `data` with a few values, and these.
SETTINGS: dict[str, tuple[str, ...]] = {"format": NAMES, "on_error": ("stop", "skip"), "pairs": ("all", "one")}
SETTINGS["stopping_strategy"] = ("first_exhausted", "all_exhausted")
