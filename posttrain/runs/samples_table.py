"""The samples of a run, before and after training, side by side."""

from rich.markup import escape
from rich.table import Table

from posttrain.runs.directory import RunDirectory
from posttrain.runs.metrics import read


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
    for one, other in changed[:count]:
        table.add_row(*(escape(_short(t)) for t in (one["prompt"], one["completion"], other["completion"])))
    return table if changed else None


def _short(text: str, limit: int = 400) -> str:
    """The end of a long text: a question is at the end of its prompt."""
    text = text.strip()
    return text if len(text) <= limit else "… " + text[-limit:]
