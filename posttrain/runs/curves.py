"""The curves of a run as a PNG: trainer metrics as lines, held-out measurements as points."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from posttrain.runs.metrics import read, title, without_tie

# Panels of the picture: title -> its metrics; a name that ends in "/" stands for all metrics with that beginning.
PANELS = {
    "loss": ("loss", "eval_loss"),
    "implicit reward, chosen and rejected": ("rewards/chosen", "rewards/rejected"),
    "reward": ("reward", "eval_reward", "probe/reward"),
    "rewards of held-out samples": ("probe/gold/", "probe/rewards/"),
    "margin": ("rewards/margins", "margin", "eval_rewards/margins", "eval_margin"),
    "accuracy": (
        *("rewards/accuracies", "accuracy", "mean_token_accuracy"),
        *("eval_rewards/accuracies", "eval_accuracy", "eval_mean_token_accuracy"),
    ),
    "KL to the reference (nats per sequence)": ("objective/kl", "probe/kl"),
    "KL as the trainer logs it": ("kl",),
    "value function: explained variance": ("value/explained_variance",),
    "completion length (tokens)": ("completions/mean_length", "probe/length"),
    "gradient norm": ("grad_norm",),
}
HELD_OUT = ("eval_", "probe/")
# Shorter than their titles, for legends.
LABELS = {
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "rewards/accuracies": "preferences",
    "accuracy": "preferences",
    "mean_token_accuracy": "tokens",
    "reward": "evaluation",
    "probe/reward": "the probe",
}
# Smallest number of measurements that are joined by a line; fewer say nothing about the steps between.
LINE_FROM = 4


def smooth(values: Sequence[float]) -> list[float]:
    """Running mean over the last tenth of the points."""
    width = max(len(values) // 10, 1)
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - width) : i + 1])]


def series(metrics: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Panel -> metric -> (step, value): every panel with a metric that was logged at all."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in map(without_tie, read(metrics)):
        for key, value in row.items():
            if "step" in row and isinstance(value, (int, float)):
                points.setdefault(key, []).append((row["step"], value))
    panels = {}
    for name, keys in PANELS.items():
        found = [k for key in keys for k in sorted(points) if k == key or (key.endswith("/") and k.startswith(key))]
        if found:
            panels[name] = {key: points[key] for key in found}
    return panels


def draw_curves(metrics: Path, target: Path, heading: str) -> None:
    """A PNG with a panel per kind of metric that the run logged, over optimizer steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = series(metrics)
    if not panels:
        return
    columns, lines = min(len(panels), 3), math.ceil(len(panels) / 3)
    size = (4.4 * columns, 3.2 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    # All panels have the same range of steps, so that single points are at the right place.
    last = max(step for found in panels.values() for points in found.values() for step, _ in points)
    for axis, (name, found) in zip(axes.flat, panels.items(), strict=False):
        for key, points in found.items():
            _line(axis, key, points, _label(key, found))
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("optimizer step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.yaxis.offsetText.set_fontsize(7)
        axis.grid(alpha=0.25)
        axis.margins(y=0.12)
        axis.set_xlim(-0.03 * max(last, 1), 1.03 * max(last, 1))
        widen(axis)
        whole_steps(axis)
        if len(found) > 1 or next(iter(found)).startswith(HELD_OUT):
            # Below the panel; inside it would cover points.
            axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2)
    figure.suptitle(heading, fontsize=11)
    half = target.with_name("curves.incomplete.png")
    figure.savefig(half, dpi=130)
    plt.close(figure)
    half.replace(target)


def widen(axis: Any) -> None:
    """Add room around values that differ by rounding only, which would give an axis with a scale of 1e-17."""
    low, high = axis.get_ylim()
    if high - low < 1e-6:
        axis.set_ylim((low + high) / 2 - 0.05, (low + high) / 2 + 0.05)


def whole_steps(axis: Any) -> None:
    """Ticks at whole steps alone."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def _label(key: str, panel: Iterable[str]) -> str:
    """A metric's label in the legend; its name if the `panel` has several metrics of training, or of held-out rows."""
    held_out = key.startswith(HELD_OUT)
    alike = [other for other in panel if other.startswith(HELD_OUT) == held_out]
    kind = "held out" if held_out else "training"
    if len(alike) == 1:
        return kind
    name = LABELS.get(key.removeprefix("eval_")) or title(key)
    return f"{kind}: {name}" if held_out and not name.startswith(("reward:", "gold reward:")) else name


def _line(axis: Any, key: str, points: Sequence[tuple[float, float]], label: str) -> None:
    """Draw one metric: points if it was measured a few times, a line if it was logged often."""
    steps, values = zip(*points, strict=True)
    held_out = key.startswith(HELD_OUT)
    if held_out or len(values) < 20:
        joined = len(values) >= LINE_FROM
        # Smaller than those before them, so that points at the same place are all seen.
        look = {"ls": (":" if held_out else "-") if joined else "", "ms": max(6 - 1.2 * len(axis.lines), 2), "lw": 1.2}
        axis.plot(steps, values, marker="o", label=label, **look)
        return
    (line,) = axis.plot(steps, smooth(values), lw=1.6, label=label)
    axis.plot(steps, values, lw=0.8, alpha=0.3, color=line.get_color())
