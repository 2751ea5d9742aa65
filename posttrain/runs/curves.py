"""The curves of a run as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.runs.metrics import read

if TYPE_CHECKING:
    pass

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
