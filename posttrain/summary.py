"""What a person reads of a run: its plan, its table before and after, samples side by side, its curves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from posttrain import online
from posttrain.console import console, facts, tell
from posttrain.rundir import RunDirectory
from posttrain.trainers import KINDS

if TYPE_CHECKING:
    from posttrain.config import Run
    from posttrain.preflight import Plan

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
ASKED = ("probe/rewards/", "probe/gold/", "probe/forgetting/", "probe/refusals/")
# What job=evaluate measures.
EVALUATED = {
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
# Of a set of completions, in front of the set's name.
SET_TITLES = {
    "win_rate": "win rate by score",
    "score": "score",
    "length": "length (tokens)",
    "ended": "share that ends",
}
# Bookkeeping that says nothing about the model.
SKIPPED = ("runtime", "per_second", "num_tokens", "epoch", "model_preparation_time", "step", "kl_stderr", "step_time")


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


def by_step(path: Path) -> dict[int, dict[str, float]]:
    """The finite numbers of a `metrics.jsonl`, those logged at one step together."""
    steps: dict[int, dict[str, float]] = {}
    for row in read(path):
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        if "step" in numbers:
            steps.setdefault(int(numbers["step"]), {}).update(numbers)
    return dict(sorted(steps.items()))


def final_metrics(path: Path) -> dict[str, float]:
    """The last value of every metric of a run."""
    last: dict[str, float] = {}
    for row in read(path):
        last.update({k: v for k, v in row.items() if isinstance(v, (int, float)) and k not in ("step", "epoch")})
    return last


def show_plan(run: Run, plan: Plan, directory: RunDirectory) -> None:
    """The plan, a line per fact."""
    total, trained = plan.parameters
    source = plan.data.source
    tokens = plan.lengths.mean * (plan.data.rows or 0)
    limit = run.trainer.args.get("max_length")
    over = sum(n > limit for n in plan.lengths.sequence) / len(plan.lengths.sequence) if limit else 0.0
    how = "full fine-tuning" if run.peft.method == "none" else f"LoRA r={run.peft.lora.get('r', 8)}"
    if run.peft.lora.get("use_dora") and run.peft.method == "lora":
        how = how.replace("LoRA", "DoRA")
    if run.peft.quantization:
        how += f" on {run.peft.quantization.get('bnb_4bit_quant_type', '8-bit')} weights"
    checkpoint = directory.last_checkpoint() if directory.record() else None
    rows = {
        "run": f"{run.trainer.kind}, {how}" + (f", continued from {checkpoint.name}" if checkpoint else ""),
        "model": f"{run.model.path}: {_count(total)} parameters, {_count(trained)} trained ({trained / total:.2%})",
        **({"starts from": plan.start.note} if plan.start.note else {}),
        "data": f"{source['path']}: {plan.data.rows or 'a stream of'} rows of about {plan.lengths.mean:.0f} tokens "
        + (f"({_count(tokens)} in all), " if tokens else "")
        + f"{source['held_out_rows']} held out"
        + (f"; {over:.0%} longer than max_length={limit}" if over else ""),
        **plan.data.lines(),
        **({"note": note} if (note := _note(run, plan)) else {}),
        **({"rewards": ", ".join(_reward(name, run) for name in run.reward)} if KINDS[run.trainer.kind].online else {}),
        "steps": f"{plan.steps} of {plan.rows_per_step} rows each"
        if plan.steps_per_rollout == 1
        else f"{plan.steps}: {plan.steps_per_rollout} on each rollout of {plan.rows_per_step} prompts",
        "device": str(plan.precision),
        "directory": str(directory.path),
    }
    facts(rows)


def _reward(name: str, run: Run) -> str:
    """A reward of the plan: its weight, and whether its model is a second one in memory."""
    entry, shared = run.reward[name], online.shared_reward(run)
    where = ""
    if entry.model is not None:
        where = " (an adapter on the policy's base)" if shared and shared[0] == name else " (a model of its own)"
    return name + where + (f" x {entry.weight:g}" if entry.weight != 1 else "")


def _note(run: Run, plan: Plan) -> str | None:
    first = plan.data.first[0]
    plain = isinstance(first.get("prompt", first.get("text")), str)
    if plain and plan.tokenizer.chat_template and not run.data.conversational:
        return "the data is plain text, so the model's chat template is not used; data.conversational=true uses it"
    return None


def show(directory: RunDirectory) -> None:
    """What changed between the first and the last measurement, a few samples, and where everything is."""
    record = directory.record() or {}
    table = before_after(directory)
    if table.row_count:
        console.print(table)
    if (samples := side_by_side(directory)) is not None:
        console.print(samples)
    tell(f"curves   {directory.curves}")
    tell(f"model    {directory.model}")
    tell(f"run      {directory.path}")
    if record.get("tracking"):
        tell(f"tracking {record['tracking']}")
    if command := record.get("command"):
        tell(f"next     {command} {_next(record)}")


def _next(record: dict[str, Any]) -> str:
    beta = {"dpo": "0.05", "kto": "0.05", "grpo": "0.04", "rloo": "0.1", "ppo": "0.2"}.get(record["trainer"])
    return f"trainer.args.beta={beta}" if beta else "trainer.args.learning_rate=5e-5"


def held_out(path: Path) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
    """First value, last value and number of measurements of every held-out metric in a `metrics.jsonl`."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    counts: dict[str, int] = {}
    for row in read(path):
        for key, value in row.items():
            # What a person named may hold any word.
            bookkeeping = not key.startswith(ASKED) and any(word in key for word in SKIPPED)
            if not key.startswith(("eval_", "probe/")) or bookkeeping:
                continue
            if isinstance(value, (int, float)):
                first.setdefault(key, value)
                last[key] = value
                counts[key] = counts.get(key, 0) + 1
    return first, last, counts


def before_after(directory: RunDirectory) -> Table:
    """The held-out metrics at the first and at the last measurement."""
    first, last, counts = held_out(directory.metrics)
    shown = [k for k in TITLES if k in last] + sorted(k for k in last if k.startswith(ASKED))
    table = Table(title=f"{directory.name}: held out, before and after", title_justify="left")
    table.add_column("metric")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for key in shown:
        table.add_row(title(key), before(key, first) if counts[key] > 1 else "", figure(last[key]))
    return table


def before(metric: str, first: dict[str, float]) -> str:
    """The first value of a metric, as text."""
    # Before a DPO step policy and reference are one model: every pair ties, and no accuracy is defined.
    tie = metric == "eval_rewards/accuracies" and first.get("eval_rewards/margins") == 0
    return "all tie" if tie else figure(first[metric])


def title(metric: str) -> str:
    """A metric in words."""
    kind, _, rest = metric.partition("/")
    if kind not in ("sampled", "greedy"):
        plain = metric.removeprefix("probe/").removeprefix("rewards/").replace("_", " ")
        return {**TITLES, **EVALUATED}.get(metric, plain)
    if rest.startswith("win_rates/"):
        return f"{kind}: win rate by {rest.removeprefix('win_rates/').replace('_', ' ')}"
    return f"{kind}: {SET_TITLES.get(rest, rest.removeprefix('rewards/').replace('_', ' '))}"


def side_by_side(directory: RunDirectory, count: int = 4) -> Table | None:
    """The first prompts whose completion changed, with both completions; `None` without samples."""
    rows = read(directory.samples)
    steps = sorted({row["step"] for row in rows})
    if len(steps) < 2:
        return None
    start = [row for row in rows if row["step"] == steps[0]]
    end = [row for row in rows if row["step"] == steps[-1]]
    table = Table(title="completions", title_justify="left", show_lines=True)
    for name in ("prompt", "before", "after"):
        table.add_column(name, overflow="fold", ratio=3 if name == "prompt" else 2)
    changed = [(a, b) for a, b in zip(start, end, strict=False) if a["completion"] != b["completion"]]
    for before, after in changed[:count]:
        table.add_row(*(escape(_short(t)) for t in (before["prompt"], before["completion"], after["completion"])))
    return table if changed else None


def _short(text: str, limit: int = 400) -> str:
    """The end of a long text: a question stands at the end of its prompt."""
    text = text.strip()
    return text if len(text) <= limit else "… " + text[-limit:]


def figure(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


# Panels of the curves picture: title, and the metrics that belong in it.
PANELS = {
    "loss": ("loss", "eval_loss"),
    "implicit reward, chosen and rejected": ("rewards/chosen", "rewards/rejected"),
    "reward": ("reward", "eval_reward"),
    "margin": ("rewards/margins", "margin", "eval_rewards/margins", "eval_margin"),
    "accuracy": (
        *("rewards/accuracies", "accuracy", "mean_token_accuracy"),
        *("eval_rewards/accuracies", "eval_accuracy", "eval_mean_token_accuracy"),
    ),
    "KL to the reference (nats)": ("kl", "objective/kl", "probe/kl"),
    "value function: explained variance": ("value/explained_variance",),
    "completion length (tokens)": ("completions/mean_length", "probe/length"),
    "gradient norm": ("grad_norm",),
}


def _without_tie(row: dict[str, Any]) -> dict[str, Any]:
    """Without the accuracy of a policy that still is its reference: every pair ties, and TRL logs 0."""
    tied = [k for k in row if k.endswith("rewards/accuracies") and row.get(k.replace("accuracies", "margins")) == 0]
    return {key: value for key, value in row.items() if key not in tied}


def smooth(values: Sequence[float]) -> list[float]:
    """Running mean over the last tenth of the points."""
    width = max(len(values) // 10, 1)
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - width) : i + 1])]


def draw_curves(metrics: Path, target: Path, title: str) -> None:
    """A PNG with a panel per kind of metric that the run logged, over optimizer steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [_without_tie(row) for row in read(metrics)]
    series = {
        key: [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
        for keys in PANELS.values()
        for key in keys
    }
    panels = {name: [k for k in keys if series[k]] for name, keys in PANELS.items()}
    panels = {name: keys for name, keys in panels.items() if any(len(series[k]) > 1 for k in keys)}
    if not panels:
        return
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.2 * columns, 2.9 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (name, keys) in zip(axes.flat, panels.items(), strict=False):
        for key in keys:
            held_out = key.startswith(("eval_", "probe/"))
            label = ("held out: " if held_out else "") + key.removeprefix("eval_").removeprefix("probe/")
            steps, values = zip(*series[key], strict=True)
            if held_out or len(values) < 20:
                axis.plot(steps, values, marker="o", ls=":" if held_out else "-", ms=4, lw=1.2, label=label)
            else:
                (line,) = axis.plot(steps, smooth(values), lw=1.6, label=label)
                axis.plot(steps, values, lw=0.8, alpha=0.3, color=line.get_color())
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("optimizer step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        if len(keys) > 1 or keys[0].startswith(("eval_", "probe/")):
            axis.legend(fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    half = target.with_name("curves.incomplete.png")
    figure.savefig(half, dpi=130)
    plt.close(figure)
    half.replace(target)
