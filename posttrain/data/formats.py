"""The names of the data formats, and the columns that trainers take."""

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
# Columns that are TRL's where there are no others, unless the answers are dialogues in one string.
PLAIN_COLUMNS = {"text", "prompt", "completion", *PAIRS}
# Number of first rows from which the format is detected.
DETECTION_ROWS = 200


def is_scored(columns: list[str], name: str) -> bool:
    """Whether rows of the format `name` hold scored or rated answers, which are converted for the trainer."""
    return name in ("ultrafeedback", "rankings", "ratings") and bool({"scores", "rating"} & set(columns))


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
