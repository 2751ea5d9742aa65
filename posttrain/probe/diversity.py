"""Repetition and diversity of completions, from tokens and words, without embeddings."""

from collections.abc import Hashable, Sequence
from statistics import fmean

# Self-BLEU compares each text with all others, so its cost grows with the square of their number.
MAX_TEXTS = 64


def _ngrams(ids: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def repetition(sequences: Sequence[Sequence[int]], n: int = 4) -> float | None:
    """rep-n: the share of a completion's token n-grams that repeat an earlier one, averaged over completions.

    In [0, 1]; None where no completion has n tokens.
    Source: Welleck et al. 2020, "Neural Text Generation With Unlikelihood Training" (seq-rep-n).
    """
    found = [grams for ids in sequences if (grams := _ngrams(ids, n))]
    return fmean(1 - len(set(grams)) / len(grams) for grams in found) if found else None


def distinct(sequences: Sequence[Sequence[Hashable]], n: int) -> float | None:
    """distinct-n: the number of different n-grams in all sequences together, divided by that of tokens; in [0, 1].

    It falls with the number and length of the completions: compare only where these are similar. None without tokens.
    Source: Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models".
    """
    tokens = sum(map(len, sequences))
    return len({gram for ids in sequences for gram in _ngrams(ids, n)}) / tokens if tokens else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """The mean BLEU-4 of each text against all others, in [0, 1]: 1 if all texts are the same.

    Uses the first `MAX_TEXTS` texts that are not empty; None with fewer than two. BLEU by sacrebleu: 13a tokens,
    exponential smoothing, effective order. Source: Zhu et al. 2018, "Texygen".
    """
    from sacrebleu.metrics import BLEU

    texts = [text for text in texts if text.strip()][:MAX_TEXTS]
    if len(texts) < 2:
        return None
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts)]
    return min(fmean(scores) / 100, 1.0)  # floating point gives 100.00000000000004


def measure(completions: Sequence[Sequence[int]], texts: Sequence[str]) -> dict[str, float]:
    """`probe/repetition`, `probe/distinct_1`, `probe/distinct_2`, `probe/self_bleu`, as far as they are defined."""
    found = {
        "probe/repetition": repetition(completions),
        "probe/distinct_1": distinct(completions, 1),
        "probe/distinct_2": distinct(completions, 2),
        "probe/self_bleu": self_bleu(texts),
    }
    return {name: value for name, value in found.items() if value is not None}
