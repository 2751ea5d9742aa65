"""Label noise: pairs or labels that a small model, trained on the other rows, contradicts.

The small model is a logistic regression on the difference of chosen and rejected in TF-IDF of words and word pairs and
in log length; each row is judged by a model that was trained without its prompt (5 folds). If labels are flipped at
random with rate r, and the model's error against the true labels is e, it disagrees with the given labels at the rate
r + (1 - 2r) e >= r, in any subset of rows. So the rate is measured where e is smallest: in the third of rows of which
the model is most certain. Source of the idea: Liu and Tao 2016, "Classification with Noisy Labels by Importance
Reweighting" (the noise rate is the least conditional probability of a label). It is an estimate only if the model is
accurate, and more certainty no longer lowers the disagreement; otherwise it is an upper bound.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.config import trainers
from posttrain.config.schema import DoctorConfig, Run
from posttrain.doctor.duplicates import normal
from posttrain.doctor.finding import Example, Finding, excerpt, finding
from posttrain.doctor.texts import Texts
from posttrain.probe.intervals import wilson

SEED, FOLDS = 0, 5
# Least number of rows for the folds. Below the accuracy WEAK the model knows nothing; below ACCURACY its own errors
# cannot be distinguished from noise.
ROWS, WEAK, ACCURACY = 100, 0.6, 0.7


@dataclass(frozen=True)
class Doubt:
    """`right`, (rows,): the held-out probability that the label of each of the judged `rows` is right."""

    rows: np.ndarray
    right: np.ndarray

    @property
    def accuracy(self) -> float:
        return float((self.right > 0.5).mean())

    def disagreement(self) -> tuple[int, int, bool]:
        """(number of disagreements, rows, steady) in the third of rows of which the model is most certain.

        Steady: in the next third, disagreement is not significantly higher (one-sided z-test of two shares at 5%).
        """
        order = np.argsort(-np.abs(self.right - 0.5), kind="stable")
        size = len(order) // 3
        sure, next_sure = (int((self.right[part] < 0.5).sum()) for part in (order[:size], order[size : 2 * size]))
        pooled = (sure + next_sure) / (2 * size)
        spread = (2 * pooled * (1 - pooled) / size) ** 0.5
        return sure, size, (next_sure - sure) / size <= 1.645 * spread

    def doubtful(self, count: int) -> list[tuple[int, float]]:
        """(row, probability that its label is right) of the most doubtful rows; [] if the model is below WEAK."""
        order = np.argsort(self.right, kind="stable")[: count if self.accuracy >= WEAK else 0]
        return [(int(self.rows[i]), float(self.right[i])) for i in order if self.right[i] < 0.5]


def estimate(texts: Texts, settings: DoctorConfig) -> Doubt | None:
    """Held-out probabilities of at most `noise_rows` rows; None where there are too few rows or prompts."""
    usable = np.arange(len(texts))
    if texts.paired:
        pairs = zip(texts.answers["chosen"], texts.answers["rejected"], strict=True)
        usable = np.array([i for i, (a, b) in enumerate(pairs) if a.strip() != b.strip()], int)
    if len(usable) > settings.noise_rows:
        usable = np.sort(np.random.default_rng(SEED).permutation(usable)[: settings.noise_rows])
    groups = np.unique([normal(texts.asked[i]) for i in usable], return_inverse=True)[1]
    if len(usable) < ROWS or len(np.unique(groups)) < 2 * FOLDS:
        return None
    features, labels = _features(texts, usable)
    if labels is not None and min(labels.sum(), (~labels).sum()) < 2 * FOLDS:
        return None
    return Doubt(usable, _held_out(features, labels, groups))


def _features(texts: Texts, rows: np.ndarray) -> tuple[Any, np.ndarray | None]:
    """Features, (rows, words), of chosen minus rejected or of the completion; and labels (None: chosen is right)."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    columns = [[texts.answers[side][i] for i in rows] for side in texts.answers]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_features=50_000, sublinear_tf=True)
    try:
        vectorizer.fit([text for column in columns for text in column])
        words = [vectorizer.transform(column) for column in columns]
    except ValueError:  # no word is in two answers
        words = [csr_matrix((len(rows), 0)) for _ in columns]
    lengths = [csr_matrix(np.log1p([[len(text)] for text in column])) for column in columns]
    both = [hstack(part).tocsr() for part in zip(words, lengths, strict=True)]
    if texts.paired:
        return both[0] - both[1], None
    assert texts.labels is not None
    return both[0], np.array(texts.labels)[rows]


def _held_out(features: Any, labels: np.ndarray | None, groups: np.ndarray) -> np.ndarray:
    """The probability of each row's label, by a model trained on other prompts."""
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    right = np.zeros(features.shape[0])
    for train, test in GroupKFold(FOLDS, shuffle=True, random_state=SEED).split(features, groups=groups):
        model = LogisticRegression(max_iter=200, fit_intercept=labels is not None)
        if labels is None:
            # Each pair in both orders, so that the model is antisymmetric, like the difference of two rewards.
            model.fit(vstack([features[train], -features[train]]), np.repeat([True, False], len(train)))
        else:
            model.fit(features[train], labels[train])
        good = model.predict_proba(features[test])[:, 1]
        right[test] = good if labels is None else np.where(labels[test], good, 1 - good)
    return right


def check(texts: Texts, doubt: Doubt | None, run: Run) -> Finding:
    if doubt is None:
        least = f"{ROWS} usable rows and {2 * FOLDS} prompts" + (f", {2 * FOLDS} of each label" if texts.labels else "")
        return finding("noise", "info", f"label noise cannot be estimated: it takes at least {least}", {})
    accuracy, (wrong, size, steady) = doubt.accuracy, doubt.disagreement()
    rate, (low, high) = wrong / size, wilson(wrong, size)
    numbers = {"rows": len(doubt.rows), "accuracy": accuracy, "rate": rate, "low": low, "high": high, "steady": steady}
    start = f"a small model trained on other rows agrees with {accuracy:.1%} of {len(doubt.rows):,} labels"
    examples = [
        Example(texts.split, i, f"{right:.2f} right: {_sides(texts, i)}")
        for i, right in doubt.doubtful(run.doctor.examples)
    ]
    if accuracy < WEAK:
        return finding("noise", "info", f"{start}, too few to say anything about label noise", numbers)
    if accuracy < ACCURACY or not steady:
        says = f"{start}, too weak to tell flipped labels from hard ones: at most about {rate:.0%} are flipped"
        return finding("noise", "info", says, numbers, examples)
    return finding(
        "noise",
        "warning" if low >= run.doctor.noise_rate / 2 and rate >= run.doctor.noise_rate else "info",
        f"{start}; about {rate:.1%} of labels are flipped (95% interval {low:.1%} to {high:.1%}), if flips are random",
        numbers,
        examples,
        "Flipped labels pull the other way as hard as right ones do, and cap what a held-out accuracy can reach.",
        fix(run, rate),
    )


def fix(run: Run, rate: float) -> str:
    """The advice against flipped labels: to look at them, and for DPO the loss of TRL 1.16 that takes their rate."""
    look = "Look at doubtful.jsonl, and relabel or take out what is wrong"
    if not trainers.of(run.trainer.kind).is_a("DPOTrainer"):
        return f"{look}; {run.trainer.kind} has no loss for flipped labels in TRL."
    types = run.trainer.args.get("loss_type", ["sigmoid"])
    types = [types] if isinstance(types, str) else list(types)
    if "robust" in types:
        return f"{look}; or set trainer.args.label_smoothing={min(rate, 0.45):.2f}, the noise rate of robust DPO."
    robust = ["robust" if name == "sigmoid" else name for name in types]
    robust = robust if "robust" in robust else ["robust"]
    chosen = f"trainer.args.loss_type=[{','.join(robust)}] trainer.args.label_smoothing={min(rate, 0.45):.2f}"
    if len(robust) != len(types) and run.trainer.args.get("loss_weights"):
        chosen += " trainer.args.loss_weights=null"
    return f"{look}; or train with {chosen} (robust DPO)."


def doubtful_rows(texts: Texts, doubt: Doubt, count: int = 200) -> list[dict[str, Any]]:
    """The most doubtful rows as text, without their secrets, for a second look."""
    from posttrain.doctor.patterns import masked

    return [
        {
            "row": i,
            "right": round(right, 4),
            "prompt": masked(texts.prompts[i]),
            **{side: masked(column[i]) for side, column in texts.answers.items()},
            **({"label": texts.labels[i]} if texts.labels is not None else {}),
        }
        for i, right in doubt.doubtful(count)
    ]


def _sides(texts: Texts, row: int) -> str:
    if texts.labels is not None:
        return f"called {'good' if texts.labels[row] else 'bad'}: {excerpt(texts.answers['completion'][row])}"
    chosen, rejected = (excerpt(texts.answers[side][row], 100) for side in ("chosen", "rejected"))
    return f"chosen: {chosen} | rejected: {rejected}"
