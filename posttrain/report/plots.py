"""The pictures: reward against KL, over-optimisation, training curves, failure modes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.report.baseline import Baseline
from posttrain.report.compare import Comparison, title
from posttrain.report.groups import Group
from posttrain.summary import smooth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which is told apart with any colour vision; and a marker each, for print in grey.
STYLES = {
    "sft": ("#009E73", "o"),
    "dpo": ("#0072B2", "s"),
    "kto": ("#56B4E9", "D"),
    "ppo": ("#D55E00", "^"),
    "grpo": ("#CC79A7", "v"),
    "rloo": ("#B59F00", "P"),
    "reward": ("#777777", "X"),
}
BEST_OF = ("#000000", "*")
# Names beside the points of the front: more are a thicket.
NAMED = 8
# Entries of a legend.
MOST = 24
DASHES = ("-", "--", "-.", ":")
# Training panels: where a run logged several of a panel's metrics, the one with most points. Only like units together.
TRAINING = {
    "training loss": ("loss",),
    "reward": ("reward", "eval_reward"),
    "preference margin": ("rewards/margins", "margin", "eval_rewards/margins", "eval_margin"),
    "preference accuracy": ("rewards/accuracies", "accuracy", "eval_rewards/accuracies", "eval_accuracy"),
    "KL to the reference (nats per sequence)": ("objective/kl", "probe/kl"),
    "completion length (tokens)": ("completions/mean_length", "probe/length"),
    "value: explained variance": ("value/explained_variance",),
    "gradient norm": ("grad_norm",),
}


def style(method: str) -> tuple[str, str]:
    return STYLES.get(method, ("#777777", "X"))


def draw(c: Comparison) -> dict[str, Figure]:
    """Every picture there is something for, by file name."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True})
    # The same comparison gives the same files.
    matplotlib.rcParams["svg.hashsalt"] = "posttrain"
    pictures = {
        "frontier": frontier(c) if c.compared else None,
        "overoptimisation": overoptimisation(c) if c.compared and c.start else None,
        "training": training(c),
        "failure_modes": failure_modes(c) if c.modes and c.groups else None,
    }
    return {name: figure for name, figure in pictures.items() if figure is not None}


def frontier(c: Comparison) -> Figure:
    """Final reward against KL, a point a group, the Pareto front, training as thin lines, best-of-n as the baseline."""
    figure, (axis,) = _panels(1, 1, (7.2, 4.8))
    metric = str(c.metric)
    _points(axis, c, metric, c.compared)
    for one in c.best_of:
        means = [mean for mean, _ in one.rewards[metric]]
        errors = [error or 0.0 for _, error in one.rewards[metric]]
        axis.errorbar(one.kl, means, errors, color=BEST_OF[0], marker=BEST_OF[1], ms=8, lw=1, ls=":", capsize=2)
        for n, x, mean in zip(one.ns, one.kl, means, strict=True):
            if n > 1:
                axis.annotate(f"n={n}", (x, mean), (4, -10), textcoords="offset points", fontsize=7)
    ends = [(c.compared[i].mean("probe/kl"), c.compared[i].mean(metric)) for i in c.front]
    front = [(kl.value, reward.value) for kl, reward in ends if kl and reward]
    if len(front) > 1:
        # Steps: between two points the budget still buys no more than the cheaper one.
        axis.step(*zip(*front, strict=True), where="post", color="#444444", lw=7, alpha=0.15, zorder=0)
    if metric in c.start:
        axis.axhline(c.start[metric], color="#888888", lw=0.8, ls=(0, (1, 3)))
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.5, foreground="white")]
    named = [(point, c.compared[i].label) for point, i in zip(front, c.front, strict=True)]
    for point, label in named[-NAMED:]:
        axis.annotate(_plain(label), point, (6, 6), textcoords="offset points", fontsize=8, path_effects=halo)
    axis.set_xlabel(_plain(f"KL to {c.reference} (nats per sequence)"))
    axis.set_ylabel(_plain(title(metric)) + (" (less is better)" if c.minimise else ""))
    axis.margins(x=0.12, y=0.12)
    axis.set_xlim(left=-0.03 * axis.get_xlim()[1])
    _legend(figure, c.compared, c.best_of, front=len(front) > 1, hollow=True)
    return figure


def overoptimisation(c: Comparison) -> Figure | None:
    """What was gained over the start against the root of KL, with the fitted curves and their peaks."""
    shown = [
        metric for metric in c.rewards if metric in c.start and any(g.path("probe/kl", metric) for g in c.compared)
    ][:4]
    if not shown:
        return None
    figure, axes = _panels(len(shown), 2, (4.6, 3.6))
    for axis, metric in zip(axes, shown, strict=True):
        _gains(axis, c, metric)
        for who, fit in c.fits.get(metric, {}).items():
            rl = fit.form == "rl"
            look = {"color": style(who)[0] if rl else BEST_OF[0], "gid": _gid(who) if rl else "best-of-n"}
            # Only as far as was measured: beyond it the form is a guess.
            d = np.linspace(0, fit.reach**0.5, 200)
            axis.plot(d, fit(d), lw=1.5, ls="-" if rl else ":", **look)
            if fit.peak and fit.peak[0] <= fit.reach:
                axis.plot([fit.peak[0] ** 0.5], [fit.peak[1]], marker="|", ms=16, mew=2, **look)
        gold = metric.startswith("probe/gold/")
        axis.set_title(_plain(f"{'gold' if gold else 'proxy'}: {title(metric).removeprefix('gold/')}"), fontsize=10)
        axis.set_xlabel("√KL (nats½)".replace("½", "$^{1/2}$"))
        axis.set_ylabel("reward gained over the start")
        axis.axhline(0, color="#888888", lw=0.8, ls=(0, (1, 3)))
    _legend(
        figure,
        c.compared,
        c.best_of,
        peak=any(f.peak and f.peak[0] <= f.reach for m in shown for f in c.fits.get(m, {}).values()),
    )
    return figure


def _gains(axis: Any, c: Comparison, metric: str) -> None:
    """The points of one reward."""
    for group in c.compared:
        colour, marker = style(group.method)
        path = [p for p in group.path("probe/kl", metric) if p["probe/kl"] >= 0]
        d = [math.sqrt(p["probe/kl"]) for p in path]
        gains = [p[metric] - c.start[metric] for p in path]
        axis.plot(d, gains, ls="", marker=marker, ms=5, color=colour, alpha=0.75, mew=0, gid=_gid(group.method))
    for one in c.best_of:
        if metric in one.rewards:
            gains = [mean - one.rewards[metric][0][0] for mean, _ in one.rewards[metric]]
            axis.plot(np.sqrt(one.kl), gains, ls="", marker=BEST_OF[1], ms=7, color=BEST_OF[0], gid="best-of-n")


def training(c: Comparison) -> Figure | None:
    """What the runs logged while they trained, a line a group (mean over seeds), over optimizer steps."""
    panels: dict[str, list[tuple[Group, str, list[dict[str, float]]]]] = {}
    for heading, keys in TRAINING.items():
        for group in c.groups:
            paths = [(key, path) for key in keys if len(path := group.path(key)) > 1]
            if paths:
                key, path = max(paths, key=lambda found: len(found[1]))
                panels.setdefault(heading, []).append((group, key, path))
    if not panels:
        return None
    figure, axes = _panels(len(panels), 3, (3.7, 2.7))
    for axis, (heading, lines) in zip(axes, panels.items(), strict=True):
        for group, key, path in lines:
            values = [point[key] for point in path]
            rank = [g for g in c.groups if g.method == group.method].index(group)
            axis.plot(
                [point["step"] for point in path],
                smooth(values) if len(values) >= 20 else values,
                color=style(group.method)[0],
                ls=DASHES[rank % len(DASHES)],
                lw=1.2,
                marker=style(group.method)[1] if len(values) < 8 else None,
                ms=4,
                gid=_gid(group.method),
            )
        axis.set_title(heading, fontsize=9)
        axis.set_xlabel("optimizer step", fontsize=8)
    _legend(figure, c.groups, [], lines=True)
    return figure


def failure_modes(c: Comparison) -> Figure | None:
    """Everything else that the probe measures, against KL; the dotted line is the start."""
    shown = [metric for metric in c.modes if any(g.mean("probe/kl") and g.mean(metric) for g in c.groups)][:12]
    if not shown:
        return None
    figure, axes = _panels(len(shown), 3, (3.6, 2.7))
    for axis, metric in zip(axes, shown, strict=True):
        _points(axis, c, metric, c.compared or c.groups)
        starts = [mean.value for group in c.compared or c.groups if (mean := group.mean(metric, start=True))]
        if starts:
            axis.axhline(sum(starts) / len(starts), color="#888888", lw=0.8, ls=(0, (1, 3)))
        axis.set_title(_plain(_named(metric)), fontsize=9)
        axis.set_xlabel("KL (nats per sequence)", fontsize=8)
        axis.margins(x=0.1, y=0.12)
    _legend(figure, c.compared or c.groups, [], hollow=True)
    return figure


NAMES = {
    "probe/length": "length (tokens)",
    "probe/ended": "share that ends",
    "probe/distinct_1": "distinct 1-grams (share)",
    "probe/distinct_2": "distinct 2-grams (share)",
    "probe/self_bleu": "self-BLEU",
    "probe/entropy": "entropy (nats per token)",
    "probe/win_rate": "win rate against the start",
    "probe/repetition": "repetition (share)",
}


def _named(metric: str) -> str:
    unit = " (nats per token)" if metric.startswith(("probe/nll/", "probe/forgetting/")) else ""
    return NAMES.get(metric, title(metric) + unit)


def _points(axis: Any, c: Comparison, metric: str, groups: Sequence[Group]) -> None:
    """The final point of each group with bars, hollow while it is unfinished, and thin the way there."""
    for group in groups:
        kl, value = group.mean("probe/kl"), group.mean(metric)
        if not kl or not value:
            continue
        colour, marker = style(group.method)
        path = group.path("probe/kl", metric)
        if len(path) > 2:
            axis.plot(
                [p["probe/kl"] for p in path],
                [p[metric] for p in path],
                color=colour,
                lw=0.8,
                alpha=0.4,
                gid=_gid(group.method),
            )
        bars = axis.errorbar(
            *(kl.value, value.value, value.error or 0.0, kl.error or 0.0),
            **{"color": colour, "marker": marker, "ms": 7, "ls": "", "elinewidth": 1, "capsize": 2},
            mfc=colour if group.finished else "white",
        )
        for artist in (*bars.lines[1], *bars.lines[2], bars.lines[0]):
            artist.set_gid(_gid(group.method))


def _panels(count: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Any]]:
    import matplotlib.pyplot as plt

    columns = min(columns, count)
    lines = -(-count // columns)
    # Space for the legend below, in inches whatever the number of panels.
    figure, axes = plt.subplots(
        lines, columns, figsize=(size[0] * columns, size[1] * lines + 0.5), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat[:count])


def _legend(
    figure: Figure,
    groups: Sequence[Group],
    best_of: Sequence[Baseline],
    front: bool = False,
    peak: bool = False,
    lines: bool = False,
    hollow: bool = False,
) -> None:
    """One legend below all panels."""
    from matplotlib.lines import Line2D

    line: Callable[..., Line2D] = Line2D
    entries = []
    if lines:
        for group in groups[:MOST]:
            rank = [g for g in groups if g.method == group.method].index(group)
            colour, marker = style(group.method)
            label = group.label if len(group.label) <= 40 else f"{group.label[:39]}…"
            dash = DASHES[rank % len(DASHES)]
            entries.append(line([], [], color=colour, marker=marker, ms=4, ls=dash, label=_plain(label)))
    else:
        for method in dict.fromkeys(group.method for group in groups):
            colour, marker = style(method)
            entries.append(line([], [], color=colour, marker=marker, ls="", label=_plain(method)))
    if any(not group.finished for group in groups) and hollow:
        entries.append(line([], [], color="#444444", marker="o", mfc="white", ls="", label="unfinished"))
    if best_of:
        entries.append(line([], [], color=BEST_OF[0], marker=BEST_OF[1], ls=":", label="best of n"))
    if front:
        entries.append(line([], [], color="#444444", lw=6, alpha=0.15, label="Pareto front"))
    if peak:
        entries.append(line([], [], color="#444444", marker="|", ms=12, mew=2, ls="", label="peak of the fit"))
    columns = max(int(figure.get_figwidth() // (2.6 if lines else 1.25)), 1)
    figure.legend(
        handles=entries, loc="outside lower center", ncols=min(columns, len(entries)), frameon=False, fontsize=8
    )


def _gid(method: str) -> str:
    """What the page's filter finds a method's marks by."""
    return "method-" + "".join(ch if ch.isalnum() else "-" for ch in method)


def _plain(text: str) -> str:
    """Not read as a formula, which a dollar sign begins."""
    return text.replace("$", r"\$")


def close(figures: dict[str, Figure]) -> None:
    """Give back the memory that pyplot holds."""
    import matplotlib.pyplot as plt

    for figure in figures.values():
        plt.close(figure)
