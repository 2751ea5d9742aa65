"""The report as one self-contained HTML page."""

from __future__ import annotations

import base64
import difflib
import hashlib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.report import heldout, style, tables
from posttrain.report.compare import START, Comparison, title
from posttrain.report.groups import Mean, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
# Prompts whose completions are shown side by side; characters at the end of a long text that are kept.
PROMPTS = 24
LONGEST = 2000
LINE_LENGTH = 140
# Least share of common words with which two completions are shown as changes.
MIN_COMMON_WORDS = 0.3
# Pixels of the page per inch of a picture.
DPI = 100
PICTURES = {
    "frontier": (
        "Reward against KL",
        "Each point is a group of runs at the end of training; thin lines are the way there. Bars are one standard "
        "deviation between seeds, or with one seed one standard error over prompts. The dotted line is the start.",
    ),
    "overoptimisation": (
        "Over-optimisation",
        "The gain of each reward over the start, against the root of KL, at all logged points. Curves are "
        "least-squares fits of d (α − β log d) for trained policies and d (α − β d) for best of n, with "
        "d = √KL (Gao et al. 2022). "
        "After ± is the standard error of the fit, which is too small, because the points of a run depend on each "
        "other: a peak is meaningful only if β is several standard errors above 0.",
    ),
    "failure_modes": ("Failure modes", "The other metrics of the probe, against KL, at the end of training."),
    "training": ("Training curves", "As logged by each trainer. Losses of different methods cannot be compared."),
}


def render(c: Comparison, figures: dict[str, Figure]) -> str:
    """The page; every text in it is escaped, and its policy allows only its own script."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    of_method = {group.method: group.method for group in c.groups}
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        script=script,
        # The policy names the script by its digest, so no other script can run, even if escaping failed.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        # At the parts of a setting's name, and never within a number.
        breakable=lambda text: Markup(re.sub("(?<=[._=])(?=[A-Za-z])", "<wbr>", str(escape(text)))),
        methods=list(of_method),
        colours={group.method: style.style(group)[0] for group in c.groups},
        pictures=[
            (name, heading(c, name), PICTURES[name][1], svg(figures[name]), described(c, name))
            for name in PICTURES
            if name in figures
        ],
        runs=_lines(c, tables.rows(c)),
        modes=_lines(c, tables.failure_modes(c)),
        alarms=tables.alarms(c),
        settings=tables.side_by_side(c),
        held_out=_lines(c, tables.held_out(c)),
        of_group={group.label: group.method for group in c.groups},
        of_run={run.name: group.method for group in c.groups for run in group.runs},
        of_method=of_method,
        others=tables.others(c),
        remarks=tables.remarks(c),
        fits=fits(c),
        samples=samples(c),
        verdicts=[verdict.sentence for verdict in c.verdicts],
    )


def _lines(c: Comparison, part: list[list[str]]) -> list[list[str]]:
    """The lines without columns that are empty everywhere."""
    if not part:
        return []
    kept = [i for i in range(len(part[0])) if i == 0 or any(row[i] for row in part[1:])]
    return [[row[i] for i in kept] for row in part]


def heading(c: Comparison, name: str) -> str:
    """The heading of a picture; without a reward, runs are compared by a held-out metric."""
    if name == "frontier" and heldout.is_held_out(str(c.metric)):
        metric = title(str(c.metric))
        return f"{metric[:1].upper()}{metric[1:]} against KL"
    return PICTURES[name][0]


def described(c: Comparison, name: str) -> str:
    """The text alternative of a picture."""
    methods = ", ".join(dict.fromkeys(group.method for group in c.groups))
    return f"{heading(c, name)} for {methods}. The numbers are in the tables of this page."


def svg(figure: Figure) -> Any:
    """A figure as inline SVG; its marks have their method as class."""
    import matplotlib
    from markupsafe import Markup

    out = io.StringIO()
    # No date and no random names, so that the same comparison gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "posttrain"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    # Ids become classes, since a method is in several pictures, and a page may hold an id only once.
    # The text behind the bar becomes the tooltip of a mark.
    text = re.sub(r'id="((?:method-[\w-]+)|best-of-n)\|([^"]*)"', r'class="\1" data-tip="\2" tabindex="0"', text)
    text = re.sub(r'id="((?:method-[\w-]+)|best-of-n)"', r'class="\1"', text)
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
    wide = round(figure.get_figwidth() * DPI)
    return Markup(text.replace("<svg", f'<svg style="--natural: {wide}px"', 1))


def fits(c: Comparison) -> list[list[str]]:
    """The fitted curves and their peaks, a line each."""
    lines = [["reward", "of", "form", "α", "β", "R²", "points", "peak at KL", "gain there"]]
    for metric, found in c.fits.items():
        for who, fit in found.items():
            form = "d (α − β log d)" if fit.form == "rl" else "d (α − β d)"
            name = who if fit.form == "rl" else "best of n"
            peak = [number(fit.peak[0]), number(fit.peak[1])] if fit.peak else ["none", ""]
            if fit.peak and fit.peak[0] > fit.reach:
                peak[0] += f" (beyond {number(fit.reach)}, the most measured)"
            constants = [str(Mean(v, e, "", ())) for v, e in zip((fit.alpha, fit.beta), fit.errors, strict=True)]
            plain = [*constants, f"{fit.r2:.2f}", str(fit.points)]
            lines.append([title(metric), name, form, *plain, *peak])
    return lines if len(lines) > 1 else []


def samples(c: Comparison) -> list[dict[str, Any]]:
    """For each prompt, the start's completion, then the final completion of each group (its first seed)."""
    prompts: dict[str, list[dict[str, Any]]] = {}
    for group in c.probed or c.groups:
        run = group.counted[0]
        steps = sorted(run.samples)
        if not steps:
            continue
        if len(steps) > 1 and steps[0] == 0:
            for row in run.samples[0]:
                answers = prompts.setdefault(str(row.get("prompt", "")), [])
                if not answers:
                    answers.append(_completion(START, "", row, None))
        for row in run.samples[steps[-1]]:
            answers = prompts.setdefault(str(row.get("prompt", "")), [])
            if all(one["who"] != group.label for one in answers):
                start = answers[0]["text"] if answers and answers[0]["who"] == START else None
                answers.append(_completion(group.label, group.method, row, start))
    # First the prompts that most runs answered.
    most = sorted(prompts.items(), key=lambda item: -len(item[1]))[:PROMPTS]
    return [{"prompt": _short(p), "short": _short(" ".join(p.split()), LINE_LENGTH), "answers": a} for p, a in most]


def _completion(who: str, method: str, row: dict[str, Any], start: str | None) -> dict[str, Any]:
    """A completion with its scores; `pieces` are its differences to the completion of the start."""
    scores = {k: v for k, v in row.items() if k not in ("step", "prompt", "completion") and isinstance(v, (int, float))}
    marks = [f"{name.replace('_', ' ')} {number(float(value))}" for name, value in scores.items()]
    text = _short(str(row.get("completion", "")))
    pieces = [("same", text)] if start is None else changes(start, text)
    return {"who": who, "method": method, "text": text, "pieces": pieces, "marks": marks}


def changes(before: str, after: str) -> list[tuple[str, str]]:
    """Words of `after` as (same, text) and (new, text), with those of `before` that are missing as (gone, text).

    If texts have little in common, a comparison word by word would be unreadable, and all of `after` is new.
    """
    old, new = (re.findall(r"\S+\s*|\s+", text) for text in (before, after))
    matcher = difflib.SequenceMatcher(None, [w.strip() for w in old], [w.strip() for w in new], autojunk=False)
    if matcher.ratio() < MIN_COMMON_WORDS:
        return [("new", after)]
    found: list[tuple[str, str]] = []
    for kind, i, j, k, m in matcher.get_opcodes():
        if kind in ("replace", "delete"):
            found.append(("gone", "".join(old[i:j])))
        if kind != "delete":
            found.append(("same" if kind == "equal" else "new", "".join(new[k:m])))
    return found


def _short(text: str, limit: int = LONGEST) -> str:
    """The end of a long text: a question is at the end of its prompt."""
    return text if len(text) <= limit else "… " + text[-limit:]
