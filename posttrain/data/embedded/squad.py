"""Preference pairs from SQuAD 2.0 that teach a model to say so when the context does not hold the answer.

- unanswerable question: chosen = `ABSTENTION`, rejected = the plausible wrong answer that a human wrote
- answerable question: chosen = the answer, rejected = `ABSTENTION`

Half of each split is of either kind, so neither "always abstain" nor "never abstain", nor a length, wins more than
half of the pairs. The context is a part of the paragraph, to be cheap on a CPU: of an answerable question the
sentences around the answer; of an unanswerable one other sentences of the same paragraph, in which the plausible wrong
answer does not stand either, as when retrieval has missed. A part of a paragraph without the answer cannot hold it.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.embedded import cache, wheels

if TYPE_CHECKING:
    from datasets import DatasetDict

VERSION = 2  # a part of the cache's name: raise it with every change of what `load` returns

ABSTENTION = "The context does not say."
SYSTEM = f"Answer from the context in a few words. If the context does not hold the answer, say: {ABSTENTION}"

# Words of context: grown with whole sentences up to LEAST, first backwards, where pronouns point; none above MOST.
LEAST, MOST = 35, 60

# Held out by article, so that no fact, paragraph or habit of a question writer was seen in training. Drawn once by
# random.Random(0).sample(sorted(titles), 11): the first five for validation, the rest for the test.
HELD_OUT = {
    "validation": ("Prime_number", "Rhine", "Black_Death", "Imperialism", "Steam_engine"),
    "test": (
        "University_of_Chicago",
        "Immune_system",
        "Geology",
        "Private_school",
        "Force",
        "Sky_(United_Kingdom)",
    ),
}
SEED = 0

# A sentence ends at . ! or ? before white space and a capital, digit or quote, unless the word is an initial or a
# common abbreviation. A wrong cut only makes a context shorter or longer.
_END = re.compile(r"(?<!\b[A-Z])(?<!\b(?:Dr|Mr|St|vs|ca|No))(?<!\bMrs)[.!?][\"”’)\]]*\s+(?=[A-Z0-9\"“‘(\[])")


def load() -> "DatasetDict":
    """The splits train, validation and test, disjoint by article; cached after the first call.

    Columns: `prompt` (list of messages), `chosen` and `rejected` (lists of one assistant message), `answers`
    (list[str], empty = unanswerable), `answerable` (bool), `title`, `id`. The order is shuffled and fixed, and
    answerable and unanswerable rows alternate, so every prefix is balanced.

    Raises `PosttrainError` where SQuAD has to be downloaded and cannot be.
    """
    from datasets import load_from_disk

    return load_from_disk(str(cache.cached(f"squad-pairs-{VERSION}", _build)))


def _build(folder: Path) -> None:
    from datasets import Dataset, DatasetDict
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    rows = list(pairs(json.loads(wheels.squad().read_text(encoding="utf-8"))["data"]))
    by_title = {title: split for split, titles in HELD_OUT.items() for title in titles}
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        splits[by_title.get(row["title"], "train")].append(row)
    data = DatasetDict({name: Dataset.from_list(balance(split)) for name, split in splits.items()})
    bars = is_progress_bar_enabled()
    disable_progress_bar()  # it takes a tenth of a second
    try:
        data.save_to_disk(folder)
    finally:
        if bars:
            enable_progress_bar()


def balance(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many answerable as unanswerable rows, each kind shuffled by `SEED`, taking turns."""
    rng = random.Random(SEED)
    kinds = [[row for row in rows if row["answerable"] is answerable] for answerable in (True, False)]
    for kind in kinds:
        rng.shuffle(kind)
    return [row for turn in zip(*kinds, strict=False) for row in turn]  # strict=False: the larger kind is cut


def pairs(articles: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One preference pair for each question with a (plausible) answer whose sentences fit into `MOST` words."""
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
                bounds: tuple[int, int] | None
                if answerable:
                    bounds = crop(paragraph["context"], start, start + len(text))
                else:
                    bounds = elsewhere(paragraph["context"], [span["text"] for span in spans], question["id"])
                if bounds is None or len(paragraph["context"][slice(*bounds)].split()) > MOST:
                    continue
                left, right = bounds
                context = paragraph["context"][left:right]
                inside = [s["text"] for s in spans if left <= s["answer_start"] <= right - len(s["text"])]
                said = [{"role": "assistant", "content": sentence(text)}]
                abstained = [{"role": "assistant", "content": ABSTENTION}]
                yield {
                    "prompt": prompt(context, question["question"]),
                    "chosen": said if answerable else abstained,
                    "rejected": abstained if answerable else said,
                    "answers": list(dict.fromkeys(inside)) if answerable else [],
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
    """Where the sentences of `context` begin, and its end."""
    return [0, *(match.end() for match in _END.finditer(context)), len(context)]


def elsewhere(context: str, answers: list[str], key: str) -> tuple[int, int] | None:
    """Bounds of sentences of `context` in which none of `answers` stands, drawn by `key`; None where there are none."""
    windows = dict.fromkeys(crop(context, cut, cut + 1) for cut in sentences(context)[:-1])
    without = [(a, b) for a, b in windows if not any(answer.lower() in context[a:b].lower() for answer in answers)]
    short = [(a, b) for a, b in without if len(context[a:b].split()) <= MOST]
    return random.Random(key).choice(short) if short else None


def crop(context: str, start: int, end: int) -> tuple[int, int]:
    """Bounds of the whole sentences of `context` that hold characters `start` to `end`, grown to some `LEAST` words.

    Neighbours are taken whole, earlier ones first, as long as the result keeps within `MOST` words.
    """
    cuts = sentences(context)
    first = max(index for index, cut in enumerate(cuts[:-1]) if cut <= start)
    last = min(index for index, cut in enumerate(cuts) if cut >= end)

    def words(first: int, last: int) -> int:
        return len(context[cuts[first] : cuts[last]].split())

    while words(first, last) < LEAST:
        if first > 0 and words(first - 1, last) <= MOST:
            first -= 1
        elif last < len(cuts) - 1 and words(first, last + 1) <= MOST:
            last += 1
        else:
            break
    return cuts[first], cuts[last]
