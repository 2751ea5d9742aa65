"""The results page: answers and agreement of each annotator."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from posttrain.annotate import agreement
from posttrain.annotate.session import Session

HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Agreement</title>
<link rel="icon" href="icon.svg">
<link rel="stylesheet" href="style.css">
<main class="results">
"""
PAIRS = ("one", "other", "items", "equal votes", "Cohen's kappa")
PEOPLE = ("name", "answers", "ties", "skipped", "flagged", "first place", "as the data", "seconds")


def page(session: Session) -> str:
    """HTML of the current figures."""
    answers = session.answers
    votes = agreement.votes(answers)
    several = sum(len(given) > 1 for given in votes.values())
    people = [
        (
            p.name,
            p.answered,
            p.ties,
            p.skips,
            p.flags,
            _number(p.first, 2),
            _number(p.as_data, 2),
            _number(p.seconds, 0),
        )
        for p in agreement.people(answers)
    ]
    pairs = [(p.one, p.other, p.items, _number(p.equal, 2), _number(p.kappa)) for p in agreement.pairs(votes)]
    ends = agreement.alpha_interval(votes)
    span = f" (95% interval {_number(ends[0])} to {_number(ends[1])})" if ends else ""
    known = sum(1 for item, given in votes.items() if given and item in session.items)
    return f"""{HEAD}
<h1>Agreement</h1>
<p class="figure"><b id="alpha">{_number(agreement.alpha(votes))}</b> Krippendorff's alpha{span}, over {several}
{"item" if several == 1 else "items"} with two or more votes</p>
<p>1 is full agreement, 0 what chance would give; below 0.67 few conclusions hold. Of {len(session.items)} items
{known} {"has" if known == 1 else "have"} a vote.</p>
<h2>Two people at a time</h2>
{_table(PAIRS, pairs) if pairs else "<p>Nobody shares an item yet.</p>"}
<h2>Each person</h2>
{_table(PEOPLE, people)}
<p class="note">First place: the share of choices that fell on the completion shown first; near 0.5 for two completions
where the place does not matter. As the data: the share of choices that the data's own labels or scores would make.
Seconds: the median per answer. A dash: not defined, as kappa is where both always answer the same.</p>
</main>
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    first = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
