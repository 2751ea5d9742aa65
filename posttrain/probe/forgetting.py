"""Forgetting: the rise in negative log-likelihood of texts that training does not see, by domain."""

from typing import Any

from posttrain.models.generate import log_probs


def nll(model: Any, texts: dict[str, list[list[int]]], pad: int) -> dict[str, float]:
    """Negative log-likelihood per token, nats, of each domain's texts (token ids); a text's first token is given."""
    found = {}
    for domain, sequences in texts.items():
        totals = log_probs(model, [(ids[:1], ids[1:]) for ids in sequences], pad)
        found[domain] = -sum(totals) / sum(len(ids) - 1 for ids in sequences)
    return found


def measure(now: dict[str, float], start: dict[str, float]) -> dict[str, float]:
    """`probe/nll/DOMAIN`, and `probe/forgetting/DOMAIN`, its change since the start: above 0 where it was forgotten."""
    metrics = {f"probe/nll/{domain}": value for domain, value in now.items()}
    return metrics | {f"probe/forgetting/{d}": value - start[d] for d, value in now.items() if d in start}
