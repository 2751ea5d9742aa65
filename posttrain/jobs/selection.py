"""Selection of completions and pairs by their scores.

Scores and texts are lists over prompts of lists over completions. A score is a number, or None where no reward applied.
A text is None where the completion cannot be trained on.
"""

import math
import random
from collections.abc import Sequence
from fractions import Fraction

from posttrain.config.schema import SampleConfig

Scores = Sequence[Sequence[float | None]]
Completions = Sequence[Sequence[str | None]]


def completions(config: SampleConfig, scores: Scores, texts: Completions) -> list[tuple[int, int]]:
    """(prompt, completion) of each kept completion, in order, by `config.select`: all, best, top or threshold.

    - all: every completion, scored or not
    - best: the highest score of each prompt; of equals, the one that was sampled first
    - top: of all n scored completions the ceil(fraction x n) highest; `config.seed` decides between equals
    - threshold: every score of at least `config.threshold`
    """
    usable = [(p, c) for p, row in enumerate(texts) for c, text in enumerate(row) if text is not None]
    if config.select == "all":
        return usable
    value = {(p, c): score for p, c in usable if (score := scores[p][c]) is not None}
    if config.select == "best":
        best: dict[int, tuple[int, int]] = {}
        for key in value:
            if key[0] not in best or value[key] > value[best[key[0]]]:
                best[key[0]] = key
        return list(best.values())
    if config.select == "top":
        keys = list(value)
        # Without shuffling, equal scores would favour the first prompts.
        random.Random(config.seed).shuffle(keys)
        keys.sort(key=lambda key: -value[key])
        # 0.07 x 100 is a little more than 7 in binary.
        return sorted(keys[: math.ceil(Fraction(str(config.fraction)) * len(keys))])
    assert config.threshold is not None
    return [key for key, score in value.items() if score >= config.threshold]


def pairs(config: SampleConfig, scores: Scores, texts: Completions) -> list[tuple[int, int, int]]:
    """(prompt, chosen, rejected): the best and the worst completion of each prompt, at least `config.margin` apart.

    Prompts whose best and worst are equal in score or in text give none.
    """
    result = []
    for prompt, (row, answers) in enumerate(zip(scores, texts, strict=True)):
        scored = enumerate(zip(row, answers, strict=True))
        value = {c: score for c, (score, text) in scored if score is not None and text is not None}
        if not value:
            continue
        chosen, rejected = max(value, key=value.__getitem__), min(value, key=value.__getitem__)
        apart = value[chosen] - value[rejected]
        if apart > 0 and apart >= config.margin and answers[chosen] != answers[rejected]:
            result.append((prompt, chosen, rejected))
    return result
