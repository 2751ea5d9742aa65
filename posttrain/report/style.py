"""Colours, markers and legends of all plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from posttrain.report.baseline import Baseline
from posttrain.report.groups import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito's palette, which is distinguishable with any colour vision; and a marker each, for print in grey.
STYLES = {
    "sft": ("#009E73", "o"),
    "dpo": ("#0072B2", "s"),
    "kto": ("#56B4E9", "D"),
    "ppo": ("#D55E00", "^"),
    "grpo": ("#CC79A7", "v"),
    "rloo": ("#B59F00", "P"),
    "reward": ("#777777", "X"),
}
# Markers of a trainer's further methods (one per set of rewards), whose colour is also darker or lighter.
MARKERS = ("<", ">", "p", "h")
SHADES = (-0.45, 0.5)
BEST_OF = ("#000000", "*")
DASHES = ("-", "--", "-.", ":")
# Possible offsets of a label from its mark, in points, best first.
LABEL_OFFSETS = ((7, 5), (7, -10), (-7, 5), (-7, -10), (0, 10), (0, -16), (14, 14), (-14, 14), (14, -20), (-14, -20))
# Most entries of a legend, and most characters of an entry.
MOST, LONGEST = 24, 40


def style(group: Group) -> tuple[str, str]:
    """Colour and marker of a group's method."""
    colour, marker = STYLES.get(group.kind, STYLES["reward"])
    if not group.variant:
        return colour, marker
    further = group.variant - 1
    return _shaded(colour, SHADES[further % len(SHADES)]), MARKERS[further % len(MARKERS)]


def _shaded(colour: str, by: float) -> str:
    """`#rrggbb` moved by the share `by` to white or, below 0, to black."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    mixed = [round(part + (255 - part) * by if by > 0 else part * (1 + by)) for part in parts]
    return "#" + "".join(f"{part:02X}" for part in mixed)


def dash(group: Group, groups: Sequence[Group]) -> str:
    """The dash pattern that distinguishes a group's line from others of its method."""
    return DASHES[[g for g in groups if g.method == group.method].index(group) % len(DASHES)]


def panels(count: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Any]]:
    """`count` axes of `size` inches in up to `columns` columns, with space for a legend below."""
    import matplotlib.pyplot as plt

    columns = min(columns, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(size[0] * columns, size[1] * rows + 0.5), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat[:count])


def legend(figure: Figure, entries: Sequence[Line2D], width: float = 1.25) -> None:
    """One legend below all panels, in columns of `width` inches."""
    columns = max(min(int(figure.get_figwidth() // width), len(entries)), 1)
    # Long enough for a dash pattern around its marker.
    length = 4 if any(one.get_linestyle() in DASHES[1:] for one in entries) else 2
    look: dict[str, Any] = {"frameon": False, "fontsize": 8, "handlelength": length}
    figure.legend(handles=entries, loc="outside lower center", ncols=columns, **look)


def entry(label: str, color: str = "#444444", **look: Any) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, label=plain(label), **look)


def methods(groups: Sequence[Group]) -> list[Line2D]:
    found = {group.method: style(group) for group in groups}
    return [entry(method, colour, marker=marker, ls="") for method, (colour, marker) in found.items()]


def lines(groups: Sequence[Group]) -> list[Line2D]:
    """A legend entry per group."""
    looks = [(group, *style(group)) for group in groups[:MOST]]
    return [
        entry(short(group.label), colour, marker=marker, ms=4, ls=dash(group, groups))
        for group, colour, marker in looks
    ]


def unfinished(groups: Sequence[Group]) -> list[Line2D]:
    return [entry("unfinished", marker="o", mfc="white", ls="")] if any(not group.finished for group in groups) else []


def best_of(baselines: Sequence[Baseline]) -> list[Line2D]:
    return [entry("best of n", BEST_OF[0], marker=BEST_OF[1], ls=":")] if baselines else []


def gid(method: str) -> str:
    """The id by which the page's filter finds a method's marks."""
    return "method-" + "".join(ch if ch.isalnum() else "-" for ch in method)


def tip(group: Group, *lines: str) -> str:
    """`gid` of a mark, with the lines of its tooltip on the page."""
    return f"{gid(group.method)}|" + "\n".join([group.label, *lines])


def place(axis: Any, labels: Sequence[Any]) -> None:
    """Move annotations so that they cover no mark and no other annotation; those without room are removed.

    `labels` are annotations with offsets in points, the most important first; their marks are where they point to.
    """
    axis.figure.draw_without_rendering()
    renderer = axis.figure.canvas.get_renderer()
    marks = axis.transData.transform([label.xy for label in labels]) if labels else ()
    taken: list[Any] = []
    for label in labels:
        for across, up in LABEL_OFFSETS:
            label.set_position((across, up))
            label.set_ha("left" if across > 0 else "right" if across < 0 else "center")
            box = label.get_window_extent(renderer)
            inside = axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1 + 30 and axis.bbox.y0 <= box.y0 < axis.bbox.y1
            if (
                inside
                and not any(box.overlaps(other) for other in taken)
                and not any(box.padded(5).contains(*m) for m in marks)
            ):
                taken.append(box)
                break
        else:
            label.remove()


def plain(text: str) -> str:
    """`text` with dollar signs escaped, which matplotlib would read as formulas."""
    return text.replace("$", r"\$")


def short(label: str) -> str:
    return label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"


def close(figures: dict[str, Figure]) -> None:
    """Close the figures, which pyplot would otherwise keep in memory."""
    import matplotlib.pyplot as plt

    for figure in figures.values():
        plt.close(figure)
