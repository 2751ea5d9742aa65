"""Rewards computed from the text alone, in TRL's signature: `f(completions, **columns) -> list[float | None]`.

A completion is a string or a list of messages; `columns` are the data set's own, each a list as long as the batch.
None means that the reward does not apply to that row; TRL leaves it out of the sum. Options such as `column` are
keywords, bound by `binding.bind` from the config.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, TypeAlias

from posttrain.errors import PosttrainError

Completion: TypeAlias = str | list[dict[str, Any]]

# What TRL passes besides the data set's columns.
NOT_COLUMNS = {"prompts", "prompt_ids", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}


def text_of(completion: Completion) -> str:
    """The completion's text, stripped: the string itself, or the content of its last message, which may have none."""
    said = completion if isinstance(completion, str) else completion[-1].get("content") if completion else ""
    if isinstance(said, list):
        said = "".join(part if isinstance(part, str) else part.get("text") or "" for part in said)
    return (said or "").strip()


def references(columns: dict[str, Any], column: str, messages: bool = False) -> list[list[Any]]:
    """The reference answers of each row; a row may hold one string or number, a list of them, or None for none.

    Numbers and dates become text; SQuAD's objects stand for their `text`; with `messages` those in a list stay. Raises
    `PosttrainError` where the data has no such column, and for anything else in it.
    """
    if column not in columns:
        there = ", ".join(sorted(columns.keys() - NOT_COLUMNS)) or "none"
        raise PosttrainError(f"reward: the data has no column {column!r}; its columns besides the prompt: {there}")
    return [_texts(row, column, messages) for row in columns[column]]


def _texts(row: Any, column: str, messages: bool) -> list[Any]:
    row = row["text"] if isinstance(row, Mapping) and "text" in row else row
    values = row if isinstance(row, (list, tuple)) else [row]
    turns = [one for one in values if messages and isinstance(one, Mapping) and "content" in one]
    if other := [one for one in values if isinstance(one, (Mapping, list, tuple, bytes)) and one not in turns]:
        raise PosttrainError(
            f"reward: the column {column!r} holds objects, such as {other[0]!r:.80}; a reference is text, a number, or "
            "a list of them"
        )
    return [_as_text(value) for value in values if value is not None and value == value]  # NaN is no value


def _as_text(value: Any) -> Any:
    """A number as it is written, 42 for 42.0 and no exponent; messages as they are."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{Decimal(int(value) if value.is_integer() else repr(value)):f}"
    return value if isinstance(value, (str, Mapping)) else str(value)


def normalize(text: str) -> str:
    """Lower case, without punctuation, the articles a/an/the and extra white space, as SQuAD's official script does."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1(text: str, reference: str) -> float:
    """Harmonic mean of the precision and recall of normalized words; in [0, 1].

    Source: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (EMNLP 2016), section 6.1,
    and its official evaluation script 2.0: where either side normalizes to nothing, 1 if both do, else 0.
    """
    words, wanted = normalize(text).split(), normalize(reference).split()
    if not words or not wanted:
        return float(words == wanted)
    common = (Counter(words) & Counter(wanted)).total()
    return 2 * common / (len(words) + len(wanted))


def best(
    completions: Sequence[Completion], answers: list[list[str]], score: Callable[[str, str], float]
) -> list[float | None]:
    """The best score of each completion over its references; None where it has none."""
    return [
        max(score(text_of(completion), answer) for answer in row) if row else None
        for completion, row in zip(completions, answers, strict=True)
    ]


def exact_match(completions: Sequence[Completion], column: str = "answers", **columns: Any) -> list[float | None]:
    """1.0 where the completion equals a reference after SQuAD's normalization, else 0.0; None without references."""
    answers = references(columns, column)
    return best(completions, answers, lambda text, answer: float(normalize(text) == normalize(answer)))


def token_f1(completions: Sequence[Completion], column: str = "answers", **columns: Any) -> list[float | None]:
    """SQuAD's word F1 against the closest reference, in [0, 1]; None without references."""
    return best(completions, references(columns, column), f1)


# A sign and a currency sign, then digits in groups of three, a decimal, or digits. A minus after a digit, a letter or a
# closing bracket is an operator or a hyphen: 5-3 ends in 3.
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])([-−])[$€£]?)?([0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]*\.[0-9]+|[0-9]+)"
)


def number(text: str) -> Decimal | None:
    """The last number in a text: -1234.5 for "about -$1,234.50."; None without one."""
    found = _NUMBER.findall(text)
    return Decimal(("-" if found[-1][0] else "") + found[-1][1].replace(",", "")) if found else None


def last_number(completions: Sequence[Completion], column: str = "answer", **columns: Any) -> list[float | None]:
    """1.0 where the last numbers of completion and reference are equal, else 0.0; None without a number to compare to.

    For GSM8K, whose answers end in "#### 42" (Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021),
    and other data with one numeric result. How the completion marks its result is left to it.
    """
    answers = [[a for a in row if number(a) is not None] for row in references(columns, column)]
    return best(completions, answers, lambda text, answer: float(number(text) == number(answer)))


def length(
    completions: Sequence[Completion], aim: int | None = None, at_most: int | None = None, **columns: Any
) -> list[float | None]:
    """The number of words, or how close it is to a target.

    - neither option: the number of words; a negative weight makes answers shorter
    - `aim=n`: 1 at n words, falling in a straight line to 0 at none and at 2n
    - `at_most=n`: 1 up to n words, falling in a straight line to 0 at 2n

    Raises `PosttrainError` where both are given or one is below 1.
    """
    limit = aim if at_most is None else at_most
    if (aim is not None and at_most is not None) or (limit is not None and (limit < 1 or not limit < float("inf"))):
        raise PosttrainError(f"reward length: give aim or at_most, at least 1; got aim={aim}, at_most={at_most}")
    words = [len(text_of(completion).split()) for completion in completions]
    if limit is None:
        return [float(count) for count in words]
    missed = [abs(count - limit) if aim else max(0, count - limit) for count in words]
    return [max(0.0, 1 - miss / limit) for miss in missed]


def regex(completions: Sequence[Completion], pattern: str, **columns: Any) -> list[float | None]:
    """1.0 where `pattern` is found in the completion, else 0.0. Flags go inside it, as `(?i)`; `^` and `$` anchor it.

    Raises `PosttrainError` where the pattern is not a regular expression.
    """
    try:
        found = re.compile(pattern).search
    except re.error as error:
        raise PosttrainError(f"reward regex: {pattern!r} is not a regular expression: {error}") from error
    return [float(found(text_of(completion)) is not None) for completion in completions]


@lru_cache(maxsize=1)
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def sentiment(completions: Sequence[Completion], **columns: Any) -> list[float | None]:
    """VADER's compound sentiment, from -1 (most negative) to 1 (most positive); 0 for an empty completion.

    Source: Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis" (ICWSM 2014).
    """
    return [_vader().polarity_scores(text_of(completion))["compound"] for completion in completions]
