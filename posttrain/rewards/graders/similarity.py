"""Text similarities in [0, 1], each computed by a library. OpenAI names the metrics; the settings below are ours.

bleu, gleu and meteor split words by sacreBLEU's tokenizer 13a; rouge by rouge-score's (lower case, letters and digits).
"""

import importlib.util
from functools import cache
from typing import Any

from posttrain import extras

# metric -> (module, distribution); rouge_N and rouge_l alike.
NEEDS = {
    "fuzzy_match": (("rapidfuzz", "rapidfuzz"),),
    "bleu": (("sacrebleu", "sacrebleu"),),
    "gleu": (("sacrebleu", "sacrebleu"), ("nltk", "nltk")),
    "meteor": (("sacrebleu", "sacrebleu"), ("nltk", "nltk")),
    "rouge": (("rouge_score", "rouge-score"),),
}


def missing(metric: str, wordnet: bool = False) -> str | None:
    """The package to install for a metric (for meteor with WordNet's synonyms), or `None`."""
    needs = NEEDS.get(metric.split("_")[0] if metric.startswith("rouge") else metric, ())
    absent = [name for module, name in needs if importlib.util.find_spec(module) is None]
    if absent:
        return f"needs {' and '.join(absent)}; {extras.install_command('graders')}"
    if metric == "meteor" and wordnet:
        try:
            _synonyms()
        except LookupError:
            return "needs NLTK's WordNet; python -m nltk.downloader wordnet"
    return None


def similarity(metric: str, text: str, reference: str, wordnet: bool = False) -> float:
    """How close `text` is to `reference`.

    - fuzzy_match: rapidfuzz's ratio, 1 - (insertions + deletions) / (both lengths)
    - bleu: sentence BLEU with effective order and exponential smoothing (Post 2018, "A Call for Clarity")
    - gleu: sentence GLEU, n-grams to 4 (Wu et al. 2016, "Google's Neural Machine Translation System", section 4)
    - meteor: of exact and Porter-stemmed matches, and with `wordnet`, a download, of synonyms as NLTK's own
      (Banerjee and Lavie 2005)
    - rouge_1 to rouge_5, rouge_l: F1 of n-grams, of the longest common subsequence (Lin 2004), without stemming
    """
    if metric == "fuzzy_match":
        from rapidfuzz.fuzz import ratio

        return float(ratio(text, reference)) / 100
    if metric == "bleu":
        from sacrebleu.metrics.bleu import BLEU

        return min(
            float(BLEU(effective_order=True).sentence_score(text, [reference]).score) / 100, 1.0
        )  # 100.00000000000004
    if metric in ("gleu", "meteor"):
        return _by_nltk(metric, _words(text), _words(reference), wordnet)
    kind = metric.replace("rouge_l", "rougeL").replace("rouge_", "rouge")
    return float(_rouge(kind).score(reference, text)[kind].fmeasure)


def _by_nltk(metric: str, words: list[str], wanted: list[str], wordnet: bool) -> float:
    if not words or not wanted:
        return float(words == wanted)
    if metric == "gleu":
        from nltk.translate.gleu_score import sentence_gleu

        return float(sentence_gleu([wanted], words))
    from nltk.translate.meteor_score import single_meteor_score

    return float(single_meteor_score(wanted, words, wordnet=_synonyms() if wordnet else _NoSynonyms()))


@cache
def _synonyms() -> Any:
    """NLTK's WordNet; raises `LookupError` where it is not on this machine."""
    from nltk.corpus import wordnet

    wordnet.ensure_loaded()
    return wordnet


class _NoSynonyms:
    """Replaces WordNet, so that scores do not depend on whether its corpus is installed."""

    def synsets(self, word: str) -> list[Any]:
        return []


@cache
def _tokenizer() -> Any:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def _words(text: str) -> list[str]:
    return str(_tokenizer()(text)).split()


@cache
def _rouge(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=False)
