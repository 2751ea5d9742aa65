"""Preference pairs from SQuAD 2.0 that teach a model to say so when the context does not hold the answer.

- unanswerable question: chosen = `ABSTENTION`, rejected = the plausible wrong answer that a human wrote
- answerable question: chosen = the answer, rejected = `ABSTENTION`

Half of each split is of either kind, so neither "always abstain" nor "never abstain", nor a length, wins more than
half of the pairs. The context is a part of a paragraph, which is cheap on a CPU. An answerable question gets the
sentences around the answer. An unanswerable one gets other sentences of the same paragraph, without the plausible wrong
answer, as after a failed retrieval; since the paragraph does not answer the question, its sentences do not either.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.suggestions import did_you_mean
from posttrain.data.embedded import cache, wheels
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import DatasetDict

VERSION = 2  # a part of the cache's name: raise it with every change of what `load` returns

ABSTENTION = "The context does not say."
SYSTEM = f"Answer from the context in a few words. If the context does not hold the answer, say: {ABSTENTION}"

# Held out by article, so that no fact, paragraph or habit of a question writer was seen in training. Drawn once by
# random.Random(0).sample(sorted(titles), 11): the first five for validation, the rest for the test.
HELD_OUT = {
    "validation": ("Prime_number", "Rhine", "Black_Death", "Imperialism", "Steam_engine"),
    "test": ("University_of_Chicago", "Immune_system", "Geology", "Private_school", "Force", "Sky_(United_Kingdom)"),
}
SEED = 0
MISSED = ("paragraph", "article")
OPTIONS = ("words", "missed")


@dataclass(frozen=True)
class Contexts:
    """Size of the context: whole sentences are added, earlier ones first, up to `least` words; none exceeds `most`.
    `missed` says where the context of an unanswerable question comes from: its paragraph, or another of its article.
    """

    least: int = 35
    most: int = 60
    missed: str = "paragraph"

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> "Contexts":
        """From `data.args`: `words` is [least, most]; raises `PosttrainError` for unknown options and wrong values."""
        given = {name: value for name, value in args.items() if value is not None}
        if unknown := [name for name in given if name not in OPTIONS]:
            fix = did_you_mean(unknown[0], OPTIONS, 1, f"it has {', '.join(OPTIONS)}")
            raise PosttrainError(f"data.args.{unknown[0]}: not an option of embedded:squad; {fix}")
        words = given.get("words", [cls.least, cls.most])
        two = isinstance(words, list | tuple) and [type(number) for number in words] == [int, int]
        if not two or not 1 <= words[0] <= words[1]:
            raise PosttrainError(f"data.args.words={words}: expected [LEAST,MOST], such as [{cls.least},{cls.most}]")
        missed = given.get("missed", cls.missed)
        if missed not in MISSED:
            raise PosttrainError(f"data.args.missed={missed}: choose from {', '.join(MISSED)}")
        return cls(words[0], words[1], missed)


DEFAULT = Contexts()

# A sentence ends at . ! or ? before white space and a capital, digit or quote, unless the word is an initial or a
# common abbreviation. A wrong cut only makes a context shorter or longer.
_END = re.compile(r"(?<!\b[A-Z])(?<!\b(?:Dr|Mr|St|vs|ca|No))(?<!\bMrs)[.!?][\"”’)\]]*\s+(?=[A-Z0-9\"“‘(\[])")


def load(args: Mapping[str, Any] | None = None) -> "DatasetDict":
    """The splits train, validation and test, disjoint by article; cached after the first call. `args`: of `Contexts`.

    Columns: `prompt` (list of messages), `chosen` and `rejected` (lists of one assistant message), `answers`
    (list[str], empty = unanswerable), `answerable` (bool), `title`, `id`. The order is shuffled and fixed, and
    answerable and unanswerable rows alternate, so every prefix is balanced.

    Raises `PosttrainError` for options that it does not have, and where SQuAD has to be downloaded and cannot be.
    """
    from datasets import load_from_disk

    contexts = Contexts.of(args or {})
    name = f"squad-pairs-{VERSION}"
    if contexts != DEFAULT:
        name += f"-{contexts.least}-{contexts.most}-{contexts.missed}"
    return load_from_disk(str(cache.cached(name, lambda folder: _build(folder, contexts))))


def _build(folder: Path, contexts: Contexts = DEFAULT) -> None:
    rows = list(pairs(json.loads(wheels.squad().read_text(encoding="utf-8"))["data"], contexts))
    by_title = {title: split for split, titles in HELD_OUT.items() for title in titles}
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        splits[by_title.get(row["title"], "train")].append(row)
    wheels.save({name: balance(split) for name, split in splits.items()}, folder)


def balance(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many answerable as unanswerable rows, each kind shuffled with `SEED`, alternating."""
    rng = random.Random(SEED)
    kinds = [[row for row in rows if row["answerable"] is answerable] for answerable in (True, False)]
    for kind in kinds:
        rng.shuffle(kind)
    return [row for turn in zip(*kinds, strict=False) for row in turn]  # strict=False: the larger kind is cut


def pairs(articles: list[dict[str, Any]], contexts: Contexts = DEFAULT) -> Iterator[dict[str, Any]]:
    """One preference pair for each question with a (plausible) answer whose sentences are not too long."""
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                spans = question["answers"] or question.get("plausible_answers", [])
                if not spans:  # 15 unanswerable questions have no plausible answer
                    continue
                answerable = bool(question["answers"])
                # The answer that most annotators gave; the first of them on a tie.
                text = Counter(span["text"] for span in spans).most_common(1)[0][0]
                start = next(span["answer_start"] for span in spans if span["text"] == text)
                inside: list[str] = []
                if answerable:
                    left, right = crop(paragraph["context"], start, start + len(text), contexts)
                    context = paragraph["context"][left:right]
                    inside = [s["text"] for s in spans if left <= s["answer_start"] <= right - len(s["text"])]
                else:
                    wrong = [span["text"] for span in spans]
                    context = missed(article, paragraph, wrong, question["id"], contexts) or ""
                if not 0 < len(context.split()) <= contexts.most:
                    continue
                said = [{"role": "assistant", "content": sentence(text)}]
                abstained = [{"role": "assistant", "content": ABSTENTION}]
                yield {
                    "prompt": prompt(context, question["question"]),
                    "chosen": said if answerable else abstained,
                    "rejected": abstained if answerable else said,
                    "answers": list(dict.fromkeys(inside)),
                    "answerable": answerable,
                    "title": article["title"],
                    "id": question["id"],
                }


def prompt(context: str, question: str) -> list[dict[str, str]]:
    """The messages that ask `question` about `context`: the one wording for training, evaluation and chat."""
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"Context: {context.strip()}\n\nQuestion: {question.strip()}"},
    ]


def sentence(answer: str) -> str:
    """The answer as this model would write it: a capital first and a full stop last. SQuAD's F1 ignores both."""
    answer = answer.strip()
    return answer[0].upper() + answer[1:] + ("" if answer[-1] in ".!?" else ".")


def sentences(context: str) -> list[int]:
    """The positions at which the sentences of `context` begin, and its length."""
    return [0, *(match.end() for match in _END.finditer(context)), len(context)]


def missed(
    article: dict[str, Any], paragraph: dict[str, Any], answers: list[str], key: str, contexts: Contexts
) -> str | None:
    """A context of an unanswerable question that holds none of `answers`, drawn with the seed `key`; or None."""
    texts = [paragraph["context"]]
    if contexts.missed == "article":
        others = [other["context"] for other in article["paragraphs"] if other is not paragraph]
        texts = random.Random(key).sample(others, len(others))
    for text in texts:
        if bounds := elsewhere(text, answers, key, contexts):
            return text[slice(*bounds)]
    return None


def elsewhere(context: str, answers: list[str], key: str, contexts: Contexts = DEFAULT) -> tuple[int, int] | None:
    """Bounds of sentences of `context` that hold none of `answers`, drawn with the seed `key`; or None."""
    windows = dict.fromkeys(crop(context, cut, cut + 1, contexts) for cut in sentences(context)[:-1])
    without = [(a, b) for a, b in windows if not any(answer.lower() in context[a:b].lower() for answer in answers)]
    short = [(a, b) for a, b in without if len(context[a:b].split()) <= contexts.most]
    return random.Random(key).choice(short) if short else None


def crop(context: str, start: int, end: int, contexts: Contexts = DEFAULT) -> tuple[int, int]:
    """Bounds of the sentences of `context` that hold characters `start` to `end`, grown to about `least` words.

    Neighbours are taken whole, earlier ones first, as long as the result keeps within `most` words.
    """
    cuts = sentences(context)
    first = max(index for index, cut in enumerate(cuts[:-1]) if cut <= start)
    last = min(index for index, cut in enumerate(cuts) if cut >= end)

    def words(first: int, last: int) -> int:
        return len(context[cuts[first] : cuts[last]].split())

    while words(first, last) < contexts.least:
        if first > 0 and words(first - 1, last) <= contexts.most:
            first -= 1
        elif last < len(cuts) - 1 and words(first, last + 1) <= contexts.most:
            last += 1
        else:
            break
    return cuts[first], cuts[last]
