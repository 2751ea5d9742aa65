"""The results of job=evaluate: metrics, intervals, a line per item, a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from posttrain import rewards
from posttrain.config import trainers
from posttrain.config.schema import EvaluateConfig, RewardConfig, Run
from posttrain.console import console, print_facts, print_plain
from posttrain.jobs.evaluate_plan import PREFERENCES, Measurements, Plan
from posttrain.models.tokens import as_text
from posttrain.probe import heldout
from posttrain.probe.intervals import Metric, difference, interval, mean
from posttrain.runs.directory import RunDirectory
from posttrain.runs.durable import write_atomic
from posttrain.runs.metrics import format_number, title

if TYPE_CHECKING:
    from posttrain.rewards.calibration import Calibration
    from posttrain.runs.lineage import Source

# Metrics that cannot be compared between two tokenizers.
PER_TOKEN = ("loss_per_token", "perplexity", "likelihood_margin", "chosen_log_prob", "rejected_log_prob")


def metrics(run: Run, plan: Plan, measured: list[Measurements]) -> dict[str, Metric]:
    """Metrics by name: the model's, `against/NAME` and `difference/NAME` of a second model, and win rates by set."""
    each = [_metrics_of(run, plan, one) for one in measured]
    found = dict(each[0])
    if len(each) == 1:
        return _measured(found)
    for name, (own, other) in _win_rates(run, plan, measured).items():
        groups = heldout.groups(plan.prompts[name.split("/")[0]])
        sign = -1.0 if (entry := _entries(run).get(name.split("/")[-1])) and entry.weight < 0 else 1.0
        found[name] = mean(heldout.wins(own, other, sign if "/win_rates/" in name else 1.0), groups)
    for name, metric in each[1].items():
        found[f"against/{name}"] = metric
        if name in each[0] and not (name in PER_TOKEN and _tokens_differ(measured)):
            found[f"difference/{name}"] = difference(each[0][name], metric)
    return _measured(found)


def _measured(found: dict[str, Metric]) -> dict[str, Metric]:
    """The metrics that apply to at least one item."""
    return {name: metric for name, metric in found.items() if metric.count}


def _metrics_of(run: Run, plan: Plan, measured: Measurements) -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    if measured.scores:
        found |= heldout.preference_metrics(measured.scores, heldout.groups(plan.rows))
    if measured.reference is not None:
        beta = float(run.trainer.args.get("beta", 0.1))
        found |= heldout.implicit_metrics(plan.rows, measured.answers, measured.reference, beta)
    if measured.answers:
        found |= heldout.likelihood_metrics(plan.rows, measured.answers)
    for name, drawn in measured.drawn.items():
        groups = heldout.groups(plan.prompts[name])
        if scores := totals(run, measured, name):
            found[f"{name}/score"] = mean(scores, groups)
        for reward, values in measured.rewards.get(name, {}).items():
            found[f"{name}/rewards/{reward}"] = mean(values, groups)
        found[f"{name}/length"] = mean([float(len(d.ids)) for d in drawn], groups)
        found[f"{name}/ended"] = mean([float(d.ended) for d in drawn], groups)
    return found | measured.benchmarks.metrics


def totals(run: Run, measured: Measurements, name: str) -> list[float | None]:
    """The weighted sum of `reward` for each completion of a set; [] without rewards."""
    values = {reward: row for reward, row in measured.rewards.get(name, {}).items() if reward in run.reward}
    rows = zip(*values.values(), strict=True)
    return [rewards.total(dict(zip(values, row, strict=True)), run.reward) for row in rows]


def _win_rates(
    run: Run, plan: Plan, measured: list[Measurements]
) -> dict[str, tuple[list[float | None], list[float | None]]]:
    """The two models' scores, by set, for the weighted sum and for each reward."""
    found = {}
    for name in plan.prompts:
        if run.reward:
            found[f"{name}/win_rate"] = (totals(run, measured[0], name), totals(run, measured[1], name))
        for reward, values in measured[0].rewards.get(name, {}).items():
            found[f"{name}/win_rates/{reward}"] = (values, measured[1].rewards[name][reward])
    return found


def _entries(run: Run) -> dict[str, RewardConfig]:
    return {**run.reward, **run.probe.judges}


def _tokens_differ(measured: list[Measurements]) -> bool:
    counts = [[answer.tokens for row in one.answers for answer in row] for one in measured]
    return counts[0] != counts[1]


def notes(run: Run, plan: Plan, measured: list[Measurements]) -> list[str]:
    """Notes on metrics that could not be measured, and on figures that could be misread."""
    found = []
    if trainers.of(run.trainer.kind).is_a(*PREFERENCES):
        found += [
            f"no implicit reward of {candidate.source.name}: {candidate.why}"
            for candidate in plan.candidates
            if candidate.why
        ]
    if plan.rows and "label" in plan.rows[0]:
        found.append("the rows are labelled one by one: margins are good less bad, and there is no accuracy")
    if left := sum(None in pair for pair in measured[0].scores):
        found.append(f"{left} pairs are left out: they are longer than trainer.args.max_length")
    if dropped := sum(not all(answer.tokens for answer in row) for row in measured[0].answers):
        found.append(f"{dropped} rows are left out: their prompt alone fills trainer.args.max_length")
    if len(measured) > 1 and measured[0].answers and _tokens_differ(measured):
        found.append("the two models cut the answers into other tokens: their losses per token cannot be compared")
    return found


def calibrate(plan: Plan, measured: Measurements) -> Calibration | None:
    """Fit the calibration of a reward model on held-out pairs; `None` for fewer than two pairs, or another model."""
    from posttrain.rewards.calibration import fit

    rows = [n for n, pair in enumerate(measured.scores) if None not in pair]
    if len(rows) < 2:
        return None
    groups = heldout.groups(plan.rows)
    scores = [[score for score in measured.scores[n] if score is not None] for n in rows]
    source = f"{plan.data['path']} ({plan.data['fingerprint']})"
    return fit(scores, [measured.lengths[n] for n in rows], [groups[n] for n in rows], source)


def keep_calibration(found: Calibration, directory: RunDirectory, source: Source) -> list[str]:
    """Store a calibration in the evaluation and in the evaluated run; returns lines that describe it."""
    found.write(directory.path)
    notes = found.describe()
    if source.run is not None:
        try:
            found.write(source.run.path)
        except OSError as error:
            notes.append(f"the calibration is not stored in {source.run.path} ({error.strerror})")
    return notes


def summary(
    found: dict[str, Metric], settings: EvaluateConfig
) -> tuple[dict[str, float], dict[str, list[float]], dict[str, int]]:
    """Values, intervals and numbers of items by name."""
    ends = {name: interval(metric, settings.confidence, settings.resamples) for name, metric in found.items()}
    return (
        {name: metric.value for name, metric in found.items()},
        {name: list(pair) for name, pair in ends.items() if pair is not None},
        {name: metric.count for name, metric in found.items()},
    )


def write_scores(path: Path, run: Run, plan: Plan, measured: list[Measurements]) -> None:
    """Write a line per held-out row and per completion, with the numbers behind the metrics."""
    lines = []
    for n, row in enumerate(plan.rows):
        start: Any = row.get("prompt", row.get("messages", row.get("text")))
        numbers = [_row_numbers(one, n) for one in measured]
        lines.append({"set": "held out", "row": n, "prompt": as_text(start), **_sides(numbers)})
    for name, prompts in plan.prompts.items():
        for n, row in enumerate(prompts):
            numbers = [_completion_numbers(run, one, name, n) for one in measured]
            lines.append({"set": name, "row": n, "prompt": as_text(row["prompt"]), **_sides(numbers)})
    write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _sides(numbers: list[dict[str, Any]]) -> dict[str, Any]:
    return {**numbers[0], **({"against": numbers[1]} if len(numbers) > 1 else {})}


def _row_numbers(measured: Measurements, n: int) -> dict[str, Any]:
    if measured.scores:
        return {"scores": measured.scores[n]}
    found: dict[str, Any] = {
        "log_p": [a.log_p for a in measured.answers[n]],
        "tokens": [a.tokens for a in measured.answers[n]],
    }
    if measured.reference is not None:
        found["reference_log_p"] = [a.log_p for a in measured.reference[n]]
    return found


def _completion_numbers(run: Run, measured: Measurements, name: str, n: int) -> dict[str, Any]:
    drawn = measured.drawn[name][n]
    found: dict[str, Any] = {"completion": drawn.text, "length": len(drawn.ids), "ended": drawn.ended}
    if scores := totals(run, measured, name):
        found["score"] = scores[n]
    return {**found, "rewards": {reward: values[n] for reward, values in measured.rewards.get(name, {}).items()}}


def show_plan(run: Run, plan: Plan, directory: RunDirectory) -> None:
    """The plan, a line per fact."""
    sets = [f"{len(plan.rows)} held-out rows"] if plan.rows else []
    sets += [f"{len(prompts)} {name} completions" for name, prompts in plan.prompts.items()]
    print_facts(
        {
            "run": f"evaluate, as {run.trainer.kind}",
            "model": plan.candidates[0].source.name,
            **({"against": plan.candidates[1].source.name} if len(plan.candidates) > 1 else {}),
            "data": f"{plan.data['path']}: {', '.join(sets)}",
            **({"rewards": ", ".join(_entries(run)) or "none"} if plan.prompts else {}),
            "directory": str(directory.path),
        }
    )


def show(directory: RunDirectory) -> None:
    """Print each metric with its interval, and next to it that of the second model and the difference."""
    record = directory.record() or {}
    values, pair = record["metrics"], record["evaluate"]["against"]
    share = f"{record['evaluate']['confidence']:.0%} interval"
    table = Table(title=f"{directory.name}: {share}", title_justify="left")
    for name in ("metric", "value", *(("against", "difference") if pair else ()), "items"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name in values:
        if name.startswith(("against/", "difference/")):
            continue
        others = [_cell(record, f"{side}/{name}") for side in ("against", "difference")] if pair else []
        table.add_row(escape(title(name)), _cell(record, name), *others, str(record["counts"][name]))
    console.print(table)
    alike = ["an interval of no width says that all items are alike, not that the number is certain"]
    for note in record["notes"] + (alike if any(low == high for low, high in record["intervals"].values()) else []):
        print_plain(f"note     {note}")
    print_plain(f"model    {record['model']['path']}")
    if pair:
        print_plain(f"against  {record['evaluate']['against']}")
    print_plain(f"scores   {directory.scores}")
    print_plain(f"run      {directory.path}")


def _cell(record: dict[str, Any], name: str) -> str:
    if name not in record["metrics"]:
        return ""
    ends = record["intervals"].get(name)
    figure = format_number(record["metrics"][name])
    return escape(figure + (f" [{format_number(ends[0])}, {format_number(ends[1])}]" if ends else ""))
