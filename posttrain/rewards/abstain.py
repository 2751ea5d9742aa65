"""Rewards for abstention: saying that the context does not hold the answer, when it does not.

A question is unanswerable when its list of reference answers is empty. Signature and None as in `rewards.text`.
"""

import re
from collections.abc import Sequence
from typing import Any

from posttrain.rewards.text import Completion, f1, references, text_of

# Ways to abstain; more than the sentence that training teaches, so that an untrained model is scored fairly.
_SOURCE = r"(?:context|passage|text|paragraph|article|statement|information|excerpt|document)"
_ABSTENTION = re.compile(
    rf"""
    \b{_SOURCE}\b [^.!?]{{0,40}} \b(?:does|do|did|is|are|was|were|has|have)(?:\s+not|n['’]t)\b
    | (?:\bnot|n['’]t|\bnever) \s+ (?:\w+\s+){{0,2}} (?:in|by|from) \s+ (?:the|this)
      \s+ (?:\w+\s+)? {_SOURCE}\b
    | \b(?:no|not\s+enough|insufficient) \s+ (?:information|mention|answer)\b
    | \b(?:can(?:\s*not|['’]t)|could\s+not|unable\s+to|impossible\s+to) \s+ (?:be\s+)?
      (?:answer|determine|find|tell|say|know)
    | \b(?:do|does)(?:\s+not|n['’]t) \s+ know\b
    | (?:\bnot|n['’]t) \s+ (?:mentioned|specified|stated|answerable|known|given|provided)\b | \bunanswerable\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def abstains(text: str) -> bool:
    """Whether the text says that the answer is unknown or not in the context; an empty text counts as abstaining."""
    return not text.strip() or _ABSTENTION.search(text) is not None


def invented(completions: Sequence[Completion], column: str = "answers", **columns: Any) -> list[float | None]:
    """1.0 where an unanswerable question got an answer, 0.0 where the model abstained; None for answerable ones."""
    return [
        None if answers else float(not abstains(text_of(completion)))
        for completion, answers in zip(completions, references(columns, column), strict=True)
    ]


def withheld(completions: Sequence[Completion], column: str = "answers", **columns: Any) -> list[float | None]:
    """1.0 where the model abstained from an answerable question, 0.0 where it answered; None for unanswerable ones."""
    return [
        float(abstains(text_of(completion))) if answers else None
        for completion, answers in zip(completions, references(columns, column), strict=True)
    ]


def abstention(completions: Sequence[Completion], column: str = "answers", **columns: Any) -> list[float | None]:
    """1.0 for abstaining from an unanswerable question, 0.0 for answering it; word F1 of the answer otherwise.

    Abstaining from an answerable question gives 0, even where its words overlap with the answer's.
    """
    rewards: list[float | None] = []
    for completion, answers in zip(completions, references(columns, column), strict=True):
        text = text_of(completion)
        if not answers:
            rewards.append(float(abstains(text)))
        else:
            rewards.append(0.0 if abstains(text) else max(f1(text, answer) for answer in answers))
    return rewards
