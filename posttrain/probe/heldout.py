"""Held-out metrics from likelihoods and from reward-model scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.data.columns import prompt_of
from posttrain.models.generate import encode_answer, log_probs
from posttrain.models.tokens import token_ids as token_ids
from posttrain.probe.intervals import Metric, exponential, mean, ratio

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Answer:
    """log p(answer | prompt) in nats, summed over its `tokens`; `tokens` is 0 if the prompt alone fills max_length."""

    log_p: float
    tokens: int

    @property
    def per_token(self) -> float | None:
        return self.log_p / self.tokens if self.tokens else None


def encode(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], max_length: int | None
) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids) of the row's answers: chosen and rejected, or the completion.

    For `messages` the answer is the last assistant turn with a weight other than 0, given the turns before it. For
    `text`, or without earlier turns, it is everything after the first token.
    """
    if "chosen" in row:
        return encode_answer(tokenizer, row["prompt"], [row[side] for side in SIDES], max_length, row)
    if "completion" in row:
        return encode_answer(tokenizer, row["prompt"], [row["completion"]], max_length, row)
    whole: Any = row.get("messages", row.get("text"))
    if isinstance(whole, str):
        whole += "" if whole.endswith(str(tokenizer.eos_token)) else tokenizer.eos_token
    else:
        learnt = [n for n, turn in enumerate(whole) if turn["role"] == "assistant" and turn.get("weight") != 0]
        last = max(learnt, default=0)
        if last:
            return encode_answer(tokenizer, whole[:last], [whole[last : last + 1]], max_length, row)
    tokens = token_ids(tokenizer, whole, row=row)[:max_length]
    return [(tokens[:1], tokens[1:])]


def answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    max_length: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[Answer]]:
    """Log-probabilities of all answers of each row under the model; `progress` gets the number of finished answers."""
    encoded = [encode(tokenizer, row, max_length) for row in rows]
    flat = [sequence for row in encoded for sequence in row]
    totals = iter(log_probs(model, flat, tokenizer.pad_token_id, progress))
    return [[Answer(next(totals), len(answer)) for _, answer in row] for row in encoded]


def groups(rows: Sequence[dict[str, Any]]) -> list[int]:
    """A number for each row, equal for rows with the same prompt."""
    seen: dict[str, int] = {}
    prompts = [prompt_of(row) for row in rows]
    return [seen.setdefault(repr(n if prompt is None else prompt), len(seen)) for n, prompt in enumerate(prompts)]


def likelihood_metrics(rows: Sequence[dict[str, Any]], found: Sequence[list[Answer]]) -> dict[str, Metric]:
    """Loss and perplexity of completions; for pairs, accuracy and margin of the log-probability per token.

    Per token, because the sum over tokens prefers the shorter answer.
    """
    by_prompt = groups(rows)
    if "chosen" in rows[0]:
        pairs = [(chosen.per_token, rejected.per_token) for chosen, rejected in found]
        return {
            **preference_metrics(pairs, by_prompt, "likelihood_"),
            "chosen_log_prob": mean([chosen for chosen, _ in pairs], by_prompt),
            "rejected_log_prob": mean([rejected for _, rejected in pairs], by_prompt),
        }
    if "label" in rows[0]:
        per_token = [answer.per_token for (answer,) in found]
        return {"likelihood_margin": _good_minus_bad(rows, per_token, by_prompt)}
    loss = ratio([-answer.log_p for (answer,) in found], [answer.tokens for (answer,) in found], by_prompt)
    return {"loss_per_token": loss, "perplexity": exponential(loss)}


def implicit_metrics(
    rows: Sequence[dict[str, Any]],
    policy: Sequence[list[Answer]],
    reference: Sequence[list[Answer]],
    beta: float,
) -> dict[str, Metric]:
    """Accuracy and margin of the implicit reward of an answer, beta x (log p under policy - log p under reference)."""
    rewards = [
        [beta * (p.log_p - r.log_p) if p.tokens else None for p, r in zip(now, before, strict=True)]
        for now, before in zip(policy, reference, strict=True)
    ]
    by_prompt = groups(rows)
    if "label" in rows[0]:
        return {"implicit_margin": _good_minus_bad(rows, [reward for (reward,) in rewards], by_prompt)}
    return preference_metrics(rewards, by_prompt, "implicit_")


def preference_metrics(
    scores: Sequence[Sequence[float | None]], by_prompt: Sequence[int], prefix: str = ""
) -> dict[str, Metric]:
    """Accuracy (chosen above rejected, ties count half) and mean margin of (chosen, rejected) scores."""
    gaps = [_minus(chosen, rejected) for chosen, rejected in scores]
    accuracy = mean([_win(chosen, rejected) for chosen, rejected in scores], by_prompt)
    return {f"{prefix}accuracy": accuracy, f"{prefix}margin": mean(gaps, by_prompt)}


def wins(first: Sequence[float | None], second: Sequence[float | None], sign: float = 1.0) -> list[float | None]:
    """1.0 where `first` is higher (`sign` -1: lower), 0.5 where they tie, None where either has no score."""
    return [_win(a, b) if sign > 0 else _win(b, a) for a, b in zip(first, second, strict=True)]


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _win(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else 0.5 if first == second else float(first > second)


def _good_minus_bad(rows: Sequence[dict[str, Any]], values: Sequence[float | None], by_prompt: Sequence[int]) -> Metric:
    """The mean over rows labelled good minus the mean over rows labelled bad."""
    import numpy as np

    columns = np.zeros((len(rows), 4))
    for n, (row, value) in enumerate(zip(rows, values, strict=True)):
        if value is not None:
            columns[n, 0 if row["label"] else 2], columns[n, 1 if row["label"] else 3] = value, 1

    def of(sums: Any) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            return sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3]

    return Metric(columns, np.asarray(by_prompt), of)
