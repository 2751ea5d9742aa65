"""Faults of preference pairs: no difference, contradiction, length bias."""

import math
from typing import Any

import numpy as np

from posttrain.config.schema import DoctorConfig, Run
from posttrain.doctor.duplicates import normal
from posttrain.doctor.finding import Example, Finding, excerpt, finding, plural, severity, share
from posttrain.doctor.texts import Texts
from posttrain.probe.intervals import wilson


def check_empty(texts: Texts, settings: DoctorConfig) -> Finding:
    """Prompts and answers that are only white space; loading already rejects answers without a character."""
    columns: dict[str, list[str]] = {"prompt": texts.prompts} if any(texts.prompts) else {}
    columns |= texts.answers
    empty = [(i, name) for name, column in columns.items() for i, text in enumerate(column) if not text.strip()]
    return finding(
        "empty",
        severity(len({i for i, _ in empty}), len(texts), settings),
        f"{plural(len(empty), 'prompt or answer', 'prompts or answers')} of nothing but white space"
        if empty
        else "no empty prompt or answer",
        {"rows": len({i for i, _ in empty})},
        [
            Example(texts.split, i, f"{name} is empty; the row: {excerpt(texts.row(i))}")
            for i, name in empty[: settings.examples]
        ],
        "The model learns to say nothing, or to speak without being asked.",
        "Take the rows out.",
    )


def check_identical(texts: Texts, settings: DoctorConfig) -> Finding:
    chosen, rejected = texts.answers["chosen"], texts.answers["rejected"]
    same = [i for i in range(len(texts)) if chosen[i].strip() == rejected[i].strip()]
    return finding(
        "pairs.identical",
        severity(len(same), len(texts), settings),
        f"{share(len(same), len(texts))} pairs have the same text as chosen and as rejected",
        {"rows": len(same), "share": len(same) / len(texts)},
        [Example(texts.split, i, excerpt(chosen[i])) for i in same[: settings.examples]],
        "Such a pair teaches nothing and costs two forward passes.",
        "Take the rows out.",
    )


def check_contradictory(texts: Texts, settings: DoctorConfig) -> Finding:
    """Pairs A > B and B > A of one prompt; for single labels, one completion labelled good and bad."""
    firsts: dict[Any, int] = {}
    found = []
    answers = list(texts.answers.values())
    for i, prompt in enumerate(map(normal, texts.prompts)):
        key: Any
        opposite: Any
        if texts.labels is not None:
            one = normal(answers[0][i])
            key, opposite = (prompt, one, texts.labels[i]), (prompt, one, not texts.labels[i])
        else:
            one, other = normal(texts.answers["chosen"][i]), normal(texts.answers["rejected"][i])
            key, opposite = (prompt, one, other), (prompt, other, one)
        if opposite in firsts and opposite != key:
            found.append((i, firsts[opposite]))
        firsts.setdefault(key, i)
    return finding(
        "pairs.contradictory",
        severity(len(found), len(texts), settings),
        f"{share(len(found), len(texts))} rows say the opposite of an earlier row",
        {"rows": len(found), "share": len(found) / len(texts)},
        [Example(texts.split, i, f"against row {j}: {excerpt(texts.row(i))}") for i, j in found[: settings.examples]],
        "They cancel each other in training, and no model can agree with both in evaluation.",
        "Decide which is right, or take both out. Votes of several people: keep the majority.",
    )


def check_length(texts: Texts, settings: DoctorConfig, kind: str) -> Finding:
    """How often the longer answer (in characters) is preferred, and the accuracy of a reward that knows only length.

    For single labels, over all pairs of a desirable and an undesirable row; in the interval they count as as many pairs
    as the rarer label has rows.
    """
    wins, ties, total = _compared(texts)
    decided = total - ties
    rate = wins / decided if decided else 0.5
    low, high = wilson(wins, decided)
    # The better of two rules, always the longer or always the shorter; equal lengths count half.
    accuracy = (max(wins, decided - wins) + ties / 2) / total if total else 0.5
    sure = (max(low, 1 - high) * decided + ties / 2) / total if total else 0.5
    which, whose = ("longer" if rate >= 0.5 else "shorter"), ("chosen" if texts.paired else "the desirable one")
    return finding(
        "length_bias",
        "warning" if sure >= settings.length_accuracy else "info",
        f"the longer answer is {whose} in {rate:.1%} of pairs (95% interval {low:.1%} to {high:.1%}); a reward model "
        f"that only prefers the {which} one scores {accuracy:.1%}",
        {"longer_chosen": rate, "low": low, "high": high, "accuracy": accuracy, "ties": ties},
        (),
        f"A reward model can score {accuracy:.0%} without reading, and a policy trained on it, or on these labels, "
        f"grows {which} whatever it is asked. Judge accuracies against that number, not against 50%.",
        LENGTH_FIXES.get(kind, LENGTH_FIXES["kto"]),
    )


def _compared(texts: Texts) -> tuple[float, float, int]:
    """Numbers of pairs: (the longer one is preferred, equally long, all)."""
    if texts.labels is None:
        lengths = [[len(text.strip()) for text in texts.answers[side]] for side in ("chosen", "rejected")]
        both = list(zip(*lengths, strict=True))
        return sum(a > b for a, b in both), sum(a == b for a, b in both), len(both)
    own = np.array([len(text.strip()) for text in texts.answers["completion"]])
    labels = np.array(texts.labels)
    good, bad = own[labels], np.sort(own[~labels])
    total = min(len(good), len(bad))
    if not total:
        return 0, 0, 0
    shorter, not_longer = (np.searchsorted(bad, good, side).mean() / len(bad) for side in ("left", "right"))
    return float(shorter) * total, float(not_longer - shorter) * total, total


LENGTH_FIXES = {
    "dpo": "trainer.args.loss_type=[sigmoid_norm] weighs by log-probability per token (set beta anew, some 10 times "
    "larger); trainer.args.ld_alpha=0.5 discounts what the longer answer has more. Or drop pairs until both ways are "
    "equally frequent.",
    "kto": "Drop rows until desirable and undesirable answers are equally long on the whole.",
    "reward": "Drop pairs until the longer and the shorter answer are chosen equally often, or give the policy a "
    "length reward next to this model (reward=length).",
}


def check_balance(texts: Texts, run: Run) -> Finding:
    """KTO's labels, and the weights that balance their numbers.

    Source: Ethayarajh et al. 2024, "KTO", eq. 8: desirable weight x number over undesirable weight x number lies in
    [1, 4/3]; TRL 1.16 warns outside the same bounds.
    """
    assert texts.labels is not None
    good = sum(texts.labels)
    bad = len(texts) - good
    weights = [float(run.trainer.args.get(name, 1.0)) for name in ("desirable_weight", "undesirable_weight")]
    ratio = weights[0] * good / (weights[1] * bad) if bad and weights[1] else math.inf
    says = (
        f"{good:,} desirable and {bad:,} undesirable rows; weighted {ratio:.2f} to 1" if bad else "no undesirable row"
    )
    level, fix = "info", ""
    if not good or not bad:
        level = "error"
        fix = "Add rows of the other label; with desirable ones alone, trainer=sft does what KTO would."
    # Rounded like TRL's own bounds, so that a difference of a row or two is no fault.
    elif not 0.99 <= ratio <= 4 / 3 + 0.01:
        level = "warning"
        low, high = weights[1] * bad / good, weights[1] * bad / good * 4 / 3
        fix = f"trainer.args.desirable_weight={(low * high) ** 0.5:.2f} (between {low:.2f} and {high:.2f})"
        if low < 0.1:  # it is better to raise the weight of the rarer label
            fix = f"trainer.args.undesirable_weight={weights[0] * good / bad / 1.15:.2f}"
    return finding(
        "balance",
        level,
        says,
        {"desirable": good, "undesirable": bad, "ratio": ratio if bad and weights[1] else 0.0},
        (),
        "The frequent label drowns the rare one: the model drifts towards all it saw, or away from it.",
        fix,
    )
