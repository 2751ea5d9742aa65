"""Titles of the metrics of job=evaluate."""

# Metrics of job=evaluate.
EVALUATION_TITLES = {
    "loss_per_token": "loss (nats per token)",
    "perplexity": "perplexity (per token)",
    "implicit_accuracy": "preference accuracy (implicit reward)",
    "implicit_margin": "preference margin (implicit reward)",
    "likelihood_accuracy": "preference accuracy (log-likelihood per token)",
    "likelihood_margin": "preference margin (log-likelihood per token)",
    "chosen_log_prob": "chosen: log-likelihood per token",
    "rejected_log_prob": "rejected: log-likelihood per token",
    "accuracy": "preference accuracy (reward model)",
    "margin": "preference margin (reward model)",
}

# Metrics of a set of completions (`sampled`, `greedy`); a title is the set's name, then this.
SET_TITLES = {
    "win_rate": "win rate by score",
    "score": "score",
    "length": "length (tokens)",
    "ended": "share that ends",
}


def evaluation_title(metric: str) -> str | None:
    """A metric of job=evaluate in words; `None` for other metrics."""
    kind, _, rest = metric.partition("/")
    if kind not in ("sampled", "greedy"):
        return EVALUATION_TITLES.get(metric)
    if rest.startswith("win_rates/"):
        return f"{kind}: win rate by {rest.removeprefix('win_rates/').replace('_', ' ')}"
    return f"{kind}: {SET_TITLES.get(rest, rest.removeprefix('rewards/').replace('_', ' '))}"
