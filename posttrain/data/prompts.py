"""Splitting a row of text into prompt and answers."""

from typing import Any

from posttrain.data.row import text


def split_text(prompt: str | None, answers: dict[str, str], repeated: bool) -> tuple[str, dict[str, str]]:
    """The prompt and the answers; without a prompt, the common beginning of two answers, which keep their space.

    `repeated` says that the answers begin with the prompt, which is removed from them. Raises `RowError` where nothing
    is left of one.
    """
    if prompt is None:
        chosen, rejected = answers.values()
        same = min(common_prefix_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
        if same and chosen[same - 1] == " ":
            same -= 1  # as in TRL
        return chosen[:same], {name: value[same:] for name, value in answers.items()}
    if repeated and prompt.strip() and all(value.startswith(prompt) for value in answers.values()):
        answers = {name: text(value[len(prompt) :], name) for name, value in answers.items()}
    return prompt, answers


def common_prefix_length(one: Any, other: Any) -> int:
    """The length of the common prefix of two sequences."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
