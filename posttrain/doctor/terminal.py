"""The report in the terminal: a table of findings, what to do about the bad ones, and three rows in colour."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from posttrain.config import trainers
from posttrain.config.schema import Run
from posttrain.console import console, print_facts, print_plain, printable
from posttrain.runs.directory import RunDirectory

if TYPE_CHECKING:
    from posttrain.doctor.plan import Plan

COLOURS = {"error": "bold red", "warning": "yellow", "info": "green"}
WORDS = {"error": "error", "warning": "warning", "info": "ok"}
# Characters at each end of a long context that are shown.
CONTEXT = 160


def show_plan(run: Run, plan: Plan, directory: RunDirectory) -> None:
    """The plan, a line per fact."""
    source = plan.data.source
    print_facts(
        {
            "run": f"doctor, on what {run.trainer.kind} would train on",
            "model": f"{run.model.path} (its tokenizer; no weights are loaded)",
            "data": f"{source['path']}: {source['train_rows']} rows, {source['held_out_rows']} held out",
            **plan.data.describe(kept=False),
            "directory": str(directory.path),
        }
    )


def show(directory: RunDirectory) -> None:
    """The findings, most severe first."""
    known = json.loads((directory.path / "doctor.json").read_text(encoding="utf-8"))
    table = Table(title=f"{directory.name}: {summary(known)}", title_justify="left")
    for name in ("", "check", "finding"):
        table.add_column(name, overflow="fold")
    for one in known["findings"]:
        colour, says = COLOURS[one["severity"]], escape(printable(one["says"]))
        table.add_row(f"[{colour}]{WORDS[one['severity']]}[/]", escape(one["name"]), says)
    console.print(table)
    for one in known["findings"]:
        if one["severity"] != "info":
            _show_finding(one)
    _show_sequences(known)
    if known["doubtful_rows"]:
        print_plain(f"doubtful {directory.path / 'doubtful.jsonl'}")
    print_plain(f"page     {directory.path / 'doctor.html'}")
    print_plain(f"numbers  {directory.path / 'doctor.json'}")


def summary(known: dict[str, Any]) -> str:
    """`2 errors, 1 warning`, or the sentence for a report without findings."""
    parts = [f"{n} {name}{'s' if n > 1 else ''}" for name in ("error", "warning") if (n := known["counts"][name])]
    return ", ".join(parts) or "nothing wrong found"


def _show_finding(one: dict[str, Any]) -> None:
    console.print(f"\n[{COLOURS[one['severity']]}]{escape(one['name'])}[/]")
    fix = one["fix"] if "fix" in one else one["mend"]  # older reports call it `mend`
    for label, text in (("consequence", one["consequence"]), ("fix", fix)):
        console.print(f"  [dim]{label}[/] {escape(text)}")
    for example in one["examples"]:
        where = escape(f"{example['split']} row {example['row']}")
        console.print(f"  [dim]{where}[/]  {escape(example['text'])}")


def _show_sequences(known: dict[str, Any]) -> None:
    if not known["sequences"]:
        return
    console.print(f"\n[bold]As the trainer sees it[/]: {legend(known['trainer'], 'green')}")
    shown = set()
    for one in known["sequences"]:
        again = one["row"] in shown
        shown.add(one["row"])
        lost = f", {one['cut']} tokens cut off" if one["cut"] else ""
        line = Text(f"row {one['row']}, {one['side']}{lost}\n", style="bold")
        for piece in one["pieces"]:
            if again and not piece["trained"] and known["trainer"] != "reward":
                continue  # both sides of a pair have the same context
            text = printable(piece["text"])
            if not piece["trained"] and len(text) > 2 * CONTEXT:
                text = f"{text[:CONTEXT]} … {text[-CONTEXT:]}"
            style = ("green" if piece["trained"] else "dim") + (" bold" if piece["special"] else "")
            line.append(text, style=style)
        console.print(line)


def legend(trainer: str, colour: str) -> str:
    """The meaning of the colour for this trainer."""
    kind = trainers.of(trainer)
    if kind.scores:
        return f"the score is read at the last token, in {colour}; everything before it is read"
    if kind.samples_completions:
        return "the prompt is read; the completion is sampled in training"
    return f"what the loss is taken on is {colour}, the context is not"
