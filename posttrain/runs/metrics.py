"""Reading `metrics.jsonl`: values by step, first and last measurement, titles."""

import json
import math
from pathlib import Path
from typing import Any

# Metrics of the before/after table, best known first; those not here follow under their own names.
TITLES = {
    "eval_rewards/accuracies": "preference accuracy (implicit reward)",
    "eval_rewards/margins": "preference margin (implicit reward)",
    "eval_accuracy": "preference accuracy (reward model)",
    "eval_margin": "preference margin (reward model)",
    "eval_loss": "held-out loss",
    "eval_mean_token_accuracy": "held-out token accuracy",
    "eval_reward": "held-out reward",
    "probe/kl": "KL to the reference (nats per sequence)",
    "probe/length": "completion length (tokens)",
    "probe/ended": "share of completions that end",
}

# Measured where the config asks for it; shown behind those above.
REQUESTED = ("probe/rewards/", "probe/gold/", "probe/forgetting/", "probe/refusals/")

# Parts of metric names that say nothing about the model.
BOOKKEEPING = (
    *("runtime", "per_second", "num_tokens", "epoch", "model_preparation_time"),
    *("step", "kl_stderr", "step_time"),
)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line that was cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def without_tie(row: dict[str, Any]) -> dict[str, Any]:
    """The row without the accuracy of a policy that still equals its reference: all pairs tie, and TRL logs 0."""
    tied = [k for k in row if k.endswith("rewards/accuracies") and row.get(k.replace("accuracies", "margins")) == 0]
    return {key: value for key, value in row.items() if key not in tied}


def by_step(path: Path) -> dict[int, dict[str, float]]:
    """The finite numbers of a `metrics.jsonl`, those logged at one step together, without undefined accuracies."""
    steps: dict[int, dict[str, float]] = {}
    for row in map(without_tie, read(path)):
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        if "step" in numbers:
            steps.setdefault(int(numbers["step"]), {}).update(numbers)
    return dict(sorted(steps.items()))


def final_metrics(path: Path) -> dict[str, float]:
    """The last value of every metric of a run."""
    values = [item for row in read(path) for item in row.items()]
    return {k: v for k, v in values if isinstance(v, (int, float)) and k not in ("step", "epoch")}


def held_out(path: Path) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
    """First value, last value and number of measurements of every held-out metric in a `metrics.jsonl`."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    counts: dict[str, int] = {}
    for row in read(path):
        for key, value in row.items():
            # Names that the user chose may contain any word.
            bookkeeping = not key.startswith(REQUESTED) and any(word in key for word in BOOKKEEPING)
            if key.startswith(("eval_", "probe/")) and not bookkeeping and isinstance(value, (int, float)):
                first.setdefault(key, value)
                last[key] = value
                counts[key] = counts.get(key, 0) + 1
    return first, last, counts


def before_and_after(path: Path) -> list[tuple[str, str, str]]:
    """The held-out metrics of a run that describe the model, as (title, first value, last value)."""
    first, last, counts = held_out(path)
    if "eval_reward" in last:  # then the loss is a surrogate, which shows no progress
        last.pop("eval_loss", None)
    shown = [*(key for key in TITLES if key in last), *sorted(key for key in last if key.startswith(REQUESTED))]
    before = {key: first_value_text(key, first) if counts[key] > 1 else "" for key in shown}
    return [(title(key), before[key], format_number(last[key])) for key in shown]


def starts_tied(metric: str, first: dict[str, float]) -> bool:
    """Whether policy and reference are equal at `first`: all pairs tie, and TRL logs an accuracy of 0."""
    return metric == "eval_rewards/accuracies" and first.get("eval_rewards/margins") == 0


def first_value_text(metric: str, first: dict[str, float]) -> str:
    """The first value of a metric, as text."""
    return "policy is the reference" if starts_tied(metric, first) else format_number(first[metric])


def title(metric: str) -> str:
    """A metric in words."""
    if metric in TITLES:
        return TITLES[metric]
    if not metric.startswith(("eval_", "probe/")):
        from posttrain.runs.evaluation_titles import evaluation_title

        if known := evaluation_title(metric):
            return known
    plain = metric.removeprefix("probe/").replace("rewards/", "reward: ").replace("gold/", "gold reward: ")
    return plain.replace("_", " ")


def stderr_metric(metric: str) -> str:
    """The name of a metric's standard error over prompts: `probe/kl_stderr`, `probe/gold_stderr/NAME`."""
    kind, slash, name = metric.removeprefix("probe/").partition("/")
    return f"probe/{kind}_stderr{slash}{name}"


def format_number(value: float) -> str:
    """A number of a table or a sentence: three decimals, none from 1,000 on; rounding errors are 0.000."""
    if abs(value) < 0.001:
        return f"{value:.4f}" if abs(value) >= 0.0001 else "0.000"
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e6 else f"{value:.{3 if abs(value) < 10 else 1}f}"
