"""`doctor.html`: the report as one file without scripts, fonts or pictures from elsewhere."""

from typing import Any

from posttrain.console import printable
from posttrain.doctor import terminal


def render(known: dict[str, Any]) -> str:
    """The page for what `doctor.json` holds. Texts of rows are escaped, and no script may run in it."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("posttrain.doctor", ""), autoescape=True, trim_blocks=True)
    environment.filters["figure"] = figure
    environment.filters["printable"] = printable
    rows: dict[int, list[dict[str, Any]]] = {}
    for one in known["sequences"]:
        rows.setdefault(one["row"], []).append(one)
    return environment.get_template("page.html.jinja").render(
        known=known,
        rows=rows,
        summary=terminal.summary(known),
        legend=terminal.legend(known["trainer"], "marked"),
        words=terminal.WORDS,
    )


def figure(value: Any) -> str:
    """A number as a person writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
