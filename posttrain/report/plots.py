"""The plots: reward against KL, over-optimisation, training curves, failure modes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.report import style
from posttrain.report.compare import MODES, Comparison, is_reward, title
from posttrain.report.groups import Group, number
from posttrain.runs.curves import LINE_FROM, smooth, whole_steps, widen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Most names next to points of the front; most groups with which other points are named, since more would overlap.
NAMED, MOST_NAMED = 8, 24
# Most panels of over-optimisation and of failure modes.
MOST_REWARDS, MOST_MODES = 4, 18
# Inches of a legend's entry that names a group.
LEGEND = 3.4
# Training panels -> metrics of the same unit; of several that a run logged, the one with most points is shown.
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


def draw(c: Comparison) -> dict[str, Figure]:
    """File name -> picture, for every picture that has data."""
    import matplotlib

    matplotlib.use("Agg")
    settings: Any = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True}
    settings["axes.formatter.useoffset"] = False  # 5.5115, not 0.0005 and +5.511 in a corner
    with matplotlib.rc_context(settings):
        pictures = {
            "frontier": frontier(c) if any(group.mean("probe/kl") for group in c.compared) else None,
            "overoptimisation": overoptimisation(c),
            "failure_modes": failure_modes(c),
            "training": training(c),
        }
    drawn = {name: figure for name, figure in pictures.items() if figure is not None}
    for axis in (axis for figure in drawn.values() for axis in figure.axes):
        widen(axis)
    return drawn


def frontier(c: Comparison) -> Figure:
    """Final reward against KL, a point per group, with the Pareto front, training as thin lines, and best-of-n."""
    figure, (axis,) = style.panels(1, 1, (7.2, 4.8))
    metric = str(c.metric)
    _points(axis, metric, c.compared)
    for one in c.best_of:
        means = [mean for mean, _ in one.rewards[metric]]
        errors = [error or 0.0 for _, error in one.rewards[metric]]
        axis.errorbar(
            one.kl, means, errors, color=style.BEST_OF[0], marker=style.BEST_OF[1], ms=8, lw=1, ls=":", capsize=2
        )
        for n, x, mean in zip(one.ns, one.kl, means, strict=True):
            if n > 1:
                axis.annotate(f"n={n}", (x, mean), (4, -10), textcoords="offset points", fontsize=7)
    ends = [(c.compared[i].mean("probe/kl"), c.compared[i].mean(metric)) for i in c.front]
    front = [(kl.value, reward.value) for kl, reward in ends if kl and reward]
    line = [(0.0, c.start[metric]), *front] if front and metric in c.start else front
    if len(line) > 1:
        # As steps: a budget between two points allows only the lower one.
        axis.step(*zip(*line, strict=True), where="post", color="#444444", lw=7, alpha=0.15, zorder=0)
    if metric in c.start:
        axis.axhline(c.start[metric], color="#888888", lw=0.8, ls=(0, (1, 3)))
    axis.set_xlabel(style.plain(f"KL to {c.reference} (nats per sequence)"))
    axis.set_ylabel(style.plain(title(metric)) + (" (less is better)" if c.minimise else ""))
    axis.margins(x=0.12, y=0.12)
    axis.set_xlim(left=-0.03 * axis.get_xlim()[1])
    entries = [*style.methods(c.compared), *style.unfinished(c.compared), *style.best_of(c.best_of)]
    front_entry = [style.entry("Pareto front", lw=6, alpha=0.15)] if len(line) > 1 else []
    style.legend(figure, [*entries, *front_entry])
    _names(axis, c, metric)
    return figure


def _names(axis: Any, c: Comparison, metric: str) -> None:
    """Label points of the front with full names, others with what distinguishes them within their method."""
    from matplotlib.patheffects import withStroke

    front = [c.compared[i] for i in c.front][-NAMED:]
    others = [group for group in c.compared if group not in front] if len(c.compared) <= MOST_NAMED else []
    labels = []
    for group in [*front, *others]:
        whole = any(group is other for other in front)
        label = group.label if whole else group.label.removeprefix(group.method).strip()
        kl, reward = group.mean("probe/kl"), group.mean(metric)
        if label and kl and reward:
            labels.append(
                axis.annotate(
                    *(style.plain(style.short(label)), (kl.value, reward.value), (6, 6)),
                    textcoords="offset points",
                    fontsize=8 if whole else 7,
                    color="#000000" if whole else style.style(group)[0],
                    path_effects=[withStroke(linewidth=2.5, foreground="white")],
                    gid=style.gid(group.method),
                )
            )
    style.place(axis, labels)


def overoptimisation(c: Comparison) -> Figure | None:
    """The gain over the start against the square root of KL, with the fitted curves and their peaks."""
    shown = [m for m in c.rewards if is_reward(m) and m in c.start and any(g.path("probe/kl", m) for g in c.compared)]
    shown = shown[:MOST_REWARDS]
    if not shown:
        return None
    figure, axes = style.panels(len(shown), 2, (4.6, 3.6))
    for axis, metric in zip(axes, shown, strict=True):
        _gains(axis, c, metric)
        colours = {group.method: style.style(group)[0] for group in c.compared}
        for who, fit in c.fits.get(metric, {}).items():
            rl = fit.form == "rl"
            look = {
                "color": colours[who] if rl else style.BEST_OF[0],
                "gid": style.gid(who) if rl else "best-of-n",
            }
            # Only up to the largest measured KL; beyond it the curve would be a guess.
            d = np.linspace(0, fit.reach**0.5, 200)
            axis.plot(d, fit(d), lw=1.5, ls="-" if rl else ":", **look)
            if fit.peak and fit.peak[0] <= fit.reach:
                axis.plot([fit.peak[0] ** 0.5], [fit.peak[1]], marker="|", ms=16, mew=2, **look)
        kind = "" if metric.startswith("probe/gold/") else "proxy "
        axis.set_title(style.plain(f"{kind}{title(metric)}"), fontsize=10)
        axis.set_xlabel("√KL (nats$^{1/2}$)")
        axis.set_ylabel("reward gained over the start")
        axis.axhline(0, color="#888888", lw=0.8, ls=(0, (1, 3)))
    peaks = [f.peak for metric in shown for f in c.fits.get(metric, {}).values() if f.peak and f.peak[0] <= f.reach]
    peak = [style.entry("peak of the fit", marker="|", ms=12, mew=2, ls="")] if peaks else []
    style.legend(figure, [*style.methods(c.compared), *style.best_of(c.best_of), *peak])
    return figure


def _gains(axis: Any, c: Comparison, metric: str) -> None:
    """The points of one reward."""
    for group in c.compared:
        colour, marker = style.style(group)
        path = [p for p in group.path("probe/kl", metric) if p["probe/kl"] >= 0]
        d = [math.sqrt(p["probe/kl"]) for p in path]
        gains = [p[metric] - c.start[metric] for p in path]
        axis.plot(d, gains, ls="", marker=marker, ms=5, color=colour, alpha=0.75, mew=0, gid=style.gid(group.method))
    for one in c.best_of:
        if metric in one.rewards:
            gains = [mean - one.rewards[metric][0][0] for mean, _ in one.rewards[metric]]
            axis.plot(
                np.sqrt(one.kl), gains, ls="", marker=style.BEST_OF[1], ms=7, color=style.BEST_OF[0], gid="best-of-n"
            )


def training(c: Comparison) -> Figure | None:
    """Training metrics over optimizer steps, a line per group (mean over seeds)."""
    panels: dict[str, list[tuple[Group, str, list[dict[str, float]]]]] = {}
    for heading, keys in TRAINING.items():
        for group in c.groups:
            paths = [(key, path) for key in keys if len(path := group.path(key)) > 1]
            if paths:
                key, path = max(paths, key=lambda found: len(found[1]))
                panels.setdefault(heading, []).append((group, key, path))
    if not panels:
        return None
    figure, axes = style.panels(len(panels), 3, (3.7, 2.7))
    for axis, (heading, lines) in zip(axes, panels.items(), strict=True):
        for group, key, path in lines:
            values = [point[key] for point in path]
            axis.plot(
                [point["step"] for point in path],
                smooth(values) if len(values) >= 20 else values,
                color=style.style(group)[0],
                ls=style.dash(group, c.groups) if len(values) >= LINE_FROM else "",
                lw=1.2,
                marker=style.style(group)[1] if len(values) < 8 else None,
                ms=4,
                gid=style.tip(group, f"{heading}: {number(values[0])} at first, {number(values[-1])} at the end"),
            )
        axis.set_title(heading, fontsize=9)
        axis.set_xlabel("optimizer step", fontsize=8)
        whole_steps(axis)
    style.legend(figure, style.lines(c.groups), width=LEGEND)
    return figure


def failure_modes(c: Comparison) -> Figure | None:
    """Everything else that the probe measures, against KL; the dotted line is the start."""
    groups = c.probed or c.groups
    shown = [metric for metric in _modes(c) if any(g.mean("probe/kl") and g.mean(metric) for g in groups)][:MOST_MODES]
    if not shown:
        return None
    figure, axes = style.panels(len(shown), 3, (3.6, 2.7))
    for axis, metric in zip(axes, shown, strict=True):
        _points(axis, metric, groups)
        starts = [mean.value for group in groups if (mean := group.mean(metric, start=True))]
        if starts:
            axis.axhline(sum(starts) / len(starts), color="#888888", lw=0.8, ls=(0, (1, 3)))
        axis.set_title(style.plain(title(metric)), fontsize=9)
        axis.set_xlabel("KL (nats per sequence)", fontsize=8)
        axis.margins(x=0.1, y=0.12)
    style.legend(figure, [*style.methods(groups), *style.unfinished(groups)])
    return figure


def _modes(c: Comparison) -> list[str]:
    """The metrics of failure modes, best known first; without the likelihoods that forgetting already shows."""
    twice = {metric.replace("/forgetting/", "/nll/") for metric in c.modes if metric.startswith("probe/forgetting/")}
    order = [*MODES, *c.modes]
    return sorted((metric for metric in c.modes if metric not in twice), key=order.index)


def _points(axis: Any, metric: str, groups: Sequence[Group]) -> None:
    """The final point of each group with error bars (hollow if unfinished), and its earlier points as a thin line."""
    for group in groups:
        kl, value = group.mean("probe/kl"), group.mean(metric)
        if not kl or not value:
            continue
        colour, marker = style.style(group)
        path = group.path("probe/kl", metric)
        if len(path) > 2:
            axis.plot(
                [p["probe/kl"] for p in path],
                [p[metric] for p in path],
                color=colour,
                lw=0.8,
                alpha=0.4,
                gid=style.gid(group.method),
            )
        bars = axis.errorbar(
            *(kl.value, value.value, value.error or 0.0, kl.error or 0.0),
            **{"color": colour, "marker": marker, "ms": 7, "ls": "", "elinewidth": 1, "capsize": 2},
            mfc=colour if group.finished else "white",
        )
        for artist in (*bars.lines[1], *bars.lines[2]):
            artist.set_gid(style.gid(group.method))
        seeds = ", ".join(map(str, group.seeds))
        bars.lines[0].set_gid(style.tip(group, f"{title(metric)} {value}", f"KL {kl} nats", f"seed {seeds}"))
