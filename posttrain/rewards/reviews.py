"""The gold reward of the sentiment study: log-odds that a movie review is positive, by a linear classifier.

It is trained at its first use on the labels of the split `gold` of `embedded:imdb`, which nothing else is trained on,
and kept in the cache with its accuracy on reviews it has not seen (`accuracy.json`). Words and pairs of words, weighted
by TF-IDF, and logistic regression: scikit-learn's, on a CPU some 20,000 short texts a second.
"""

import importlib.util
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from posttrain import extras
from posttrain.data.embedded import cache
from posttrain.rewards.text import Completion

# Raised when the config is checked, before weights are loaded.
if importlib.util.find_spec("sklearn") is None:
    raise ImportError(f"needs scikit-learn; {extras.install_command('frontier')}")

VERSION = 1  # a part of the cache's name: raise it with every change of the classifier
OPTIONS = {"ngram_range": (1, 2), "min_df": 5, "sublinear_tf": True}
C = 4.0  # inverse strength of the L2 penalty


def positive(
    completions: Sequence[Completion], prompts: Sequence[Completion] | None = None, **columns: Any
) -> list[float | None]:
    """Log-odds that prompt and completion together are a positive review; 0 is undecided.

    The review is judged as a whole, as in Rafailov et al. 2023, "Direct Preference Optimization", appendix C.1.
    """
    openings = prompts if prompts is not None else [""] * len(completions)
    texts = [_plain(opening) + _plain(completion) for opening, completion in zip(openings, completions, strict=True)]
    return log_odds(texts) if texts else []


def log_odds(texts: Sequence[str]) -> list[float | None]:
    """The classifier's decision for each text, in nats."""
    vectorizer, weights, bias = _classifier()
    return [float(score) for score in vectorizer.transform(texts) @ weights + bias]


def accuracy() -> dict[str, float]:
    """Accuracy on held-out reviews (splits `eval` and `train` of `embedded:imdb`), by what is judged.

    `review`: whole reviews; `imdb`, `rotten_tomatoes`: those of one source; `opening`: first sentences, about as long
    as policies write, with the label of the whole review.
    """
    return json.loads((_folder() / "accuracy.json").read_text(encoding="utf-8"))


def _plain(text: Completion) -> str:
    """Text, or the last turn of a conversation; a turn is scored by itself, text continues where the prompt ended."""
    if isinstance(text, str):
        return text
    return f" {text[-1]['content']}" if text else ""


def _folder() -> Path:
    return cache.cached(f"reviews-classifier-{VERSION}", _train)


@lru_cache(maxsize=1)
def _classifier() -> tuple[Any, Any, float]:
    """The fitted vectorizer, a weight for each of its features, and the bias."""
    from safetensors.numpy import load_file
    from sklearn.feature_extraction.text import TfidfVectorizer

    folder = _folder()
    words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    arrays = load_file(folder / "classifier.safetensors")
    vectorizer = TfidfVectorizer(**{**OPTIONS, "min_df": 1}, vocabulary=words)
    vectorizer.idf_ = arrays["idf"]
    return vectorizer, arrays["weights"], float(arrays["bias"][0])


def _train(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    from posttrain.console import print_plain
    from posttrain.data.embedded import imdb

    print_plain("Training the gold reward on the labels of the reviews, once (20 s)")
    data = imdb.load()
    vectorizer = TfidfVectorizer(**OPTIONS)
    features = vectorizer.fit_transform(data["gold"]["text"])
    model = LogisticRegression(C=C, max_iter=500).fit(features, data["gold"]["label"])
    words = sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.__getitem__)
    arrays = {"idf": vectorizer.idf_, "weights": model.coef_[0], "bias": model.intercept_}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "classifier.safetensors")
    (folder / "words.json").write_text(json.dumps(words), encoding="utf-8")

    rows = [row for split in ("eval", "train") for row in data[split]]
    labels = np.array([row["label"] for row in rows])
    source = np.array([row["source"] for row in rows])
    right = {
        name: (model.decision_function(vectorizer.transform([row[name] for row in rows])) > 0) == labels
        for name in ("review", "text")
    }
    found = {
        "review": right["review"].mean(),
        **{name: right["review"][source == name].mean() for name in ("imdb", "rotten_tomatoes")},
        "opening": right["text"].mean(),
        "reviews": len(rows),
        "trained_on": len(data["gold"]),
    }
    (folder / "accuracy.json").write_text(json.dumps({name: round(float(v), 4) for name, v in found.items()}) + "\n")
