"""The data set that job=sample writes: its rows, figures and card, and its display in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from datasets import Features, Value
from rich.markup import escape
from rich.table import Table

from posttrain import rewards
from posttrain.config.schema import Origin, Run
from posttrain.console import console, print_facts, print_plain
from posttrain.errors import PosttrainError
from posttrain.jobs import selection
from posttrain.runs.directory import RunDirectory
from posttrain.runs.metrics import format_number, title
from posttrain.runs.next_command import training_command

if TYPE_CHECKING:
    from datasets import Dataset

    from posttrain.jobs.sample_plan import Plan

TITLES = {
    "score": "mean score",
    "best_of_n": "mean score of the best of n",
    "prompts": "prompts",
    "completions": "completions drawn",
    "kept": "rows kept",
    "kept_score": "mean score of the rows kept",
    "ended": "share of completions that end",
    "length": "completion length (tokens)",
    "tokens_per_second": "tokens per second",
}


@dataclass(frozen=True)
class Completion:
    """A completion with its rewards and their weighted sum; the sum is `None` where no reward applied."""

    text: str
    tokens: int
    ended: bool
    rewards: dict[str, float | None]
    score: float | None


def collect(
    prompts: int, drawn: list[dict[str, Any]], scored: list[dict[str, Any]], run: Run
) -> list[list[Completion]]:
    """The completions of each prompt, from the journals."""
    result: list[list[Completion]] = [[] for _ in range(prompts)]
    for number, piece in enumerate(drawn):
        values = scored[number]["rewards"] if run.reward else {}
        for position, completion in enumerate(piece["completions"]):
            own = {name: row[position] for name, row in values.items()}
            result[piece["prompts"][position // run.sample.n]].append(
                Completion(
                    completion["text"], len(completion["ids"]), completion["ended"], own, rewards.total(own, run.reward)
                )
            )
    return result


def rows(run: Run, prompts: Dataset, completions: list[list[Completion]]) -> Dataset:
    """The selected completions, or pairs, besides the columns of their prompts; raises `PosttrainError` for none."""
    scores = [[c.score for c in group] for group in completions]
    texts = [[c.text if _usable(c, run) else None for c in group] for group in completions]
    if run.sample.select == "pairs":
        triples = selection.pairs(run.sample, scores, texts)
        sides = {
            "chosen": [completions[p][c] for p, c, _ in triples],
            "rejected": [completions[p][r] for p, _, r in triples],
        }
        indices = [p for p, _, _ in triples]
    else:
        kept = selection.completions(run.sample, scores, texts)
        sides, indices = {"completion": [completions[p][c] for p, c in kept]}, [p for p, _ in kept]
    if not indices:
        raise PosttrainError(f"sample.select={run.sample.select}: {_nothing(run, completions)}")
    data = prompts.select(indices)
    text = data.features["prompt"]
    if isinstance(data[0]["prompt"], list):
        text = [{"role": Value("string"), "content": Value("string")}]
    parts = Features({name: Value("float64") for name in run.reward})
    for name, values in sides.items():
        end = "" if name == "completion" else f"_{name}"
        answers = [rewards.as_completion(prompt, v.text) for prompt, v in zip(data["prompt"], values, strict=True)]
        data = data.add_column(name, answers, feature=text)
        if run.sample.unfinished and end:
            data = data.add_column(f"ended{end}", [v.ended for v in values])
        if run.reward:
            data = data.add_column(f"score{end}", [v.score for v in values], feature=Value("float64"))
            data = data.add_column(f"rewards{end}", [v.rewards for v in values], feature=parts)
    return data


def _usable(completion: Completion, run: Run) -> bool:
    """Whether it can be trained on: no trainer takes an empty answer, and a cut one would teach to stop there."""
    return bool(completion.text) and (completion.ended or run.sample.unfinished)


def _nothing(run: Run, completions: list[list[Completion]]) -> str:
    """Why no row is left, and the fix."""
    every = [c for group in completions for c in group]
    usable = [c for c in every if _usable(c, run)]
    scores = [c.score for c in usable if c.score is not None]
    if not usable:
        return (
            f"all {len(every)} completions are empty or cut off by sample.max_new_tokens="
            f"{run.sample.max_new_tokens}; raise it, or keep those cut off with sample.unfinished=true"
        )
    if run.sample.select != "all" and not scores:
        return "no reward applies to any completion; see which rows the reward functions return None for"
    if run.sample.select == "threshold":
        return f"no score reaches sample.threshold={run.sample.threshold:g}, the highest is {max(scores):g}; lower it"
    more = "raise sample.n or sample.temperature"
    if not run.sample.margin:
        return f"no prompt has two completions with different scores; {more}"
    return (
        f"no prompt has two different completions with scores at least sample.margin={run.sample.margin:g} apart; "
        f"lower it, or {more}"
    )


def metrics(completions: list[list[Completion]], kept: Dataset, drawn: list[dict[str, Any]]) -> dict[str, float]:
    """The metrics of `run.json`; those of scores only if there are scores."""
    every = [c for group in completions for c in group]
    found: dict[str, float] = {
        "prompts": len(completions),
        "completions": len(every),
        "kept": len(kept),
        "ended": fmean(c.ended for c in every),
        "length": fmean(c.tokens for c in every),
        "tokens_per_second": round(
            sum(c.tokens for c in every) / max(sum(piece["seconds"] for piece in drawn), 1e-9), 1
        ),
    }
    if scores := [c.score for c in every if c.score is not None]:
        found["score"] = fmean(scores)
        best = [max((c.score for c in group if c.score is not None), default=None) for group in completions]
        found["best_of_n"] = fmean(score for score in best if score is not None)
        column = "score_chosen" if "score_chosen" in kept.column_names else "score"
        if known := [score for score in kept[column] if score is not None]:
            found["kept_score"] = fmean(known)
    for name in every[0].rewards:
        if values := [v for c in every if (v := c.rewards[name]) is not None]:
            found[f"rewards/{name}"] = fmean(values)
    return found


def quantiles(values: Sequence[float]) -> list[float]:
    """Minimum, 5, 25, 50, 75, 95 % quantiles, and maximum."""
    import numpy as np

    return [float(q) for q in np.quantile(values, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])]


def write_card(
    folder: Path,
    run: Run,
    origin: Origin,
    plan: Plan,
    completions: list[list[Completion]],
    kept: Dataset,
    figures: dict[str, float],
) -> None:
    """Write `README.md`: the model, the prompts, the settings of sampling, and how completions were selected."""
    from huggingface_hub import DatasetCard, DatasetCardData

    settings, source = run.sample, plan.data
    card = DatasetCardData(
        task_categories=["text-generation"],
        tags=["posttrain", "synthetic", "trl"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "train.parquet"}]}],
    )
    rewarded = "".join(
        f"\n- Reward `{name}`: `{entry.function or entry.model or entry.grader}`, weight {entry.weight:g}"
        for name, entry in run.reward.items()
    )
    table = "\n".join(f"| {' | '.join(_figure(name, value))} |" for name, value in figures.items())
    text = f"""---
{card.to_yaml()}
---

# {folder.parent.name}

Completions that a model gave itself: {len(kept)} rows with the columns {", ".join(kept.column_names)}.

- Model: `{plan.source.name}`{f", revision `{plan.source.revision}`" if plan.source.revision else ""}
- Prompts: `{source["path"]}`, split {settings.split}, {len(plan.prompts)} rows, fingerprint `{source["fingerprint"]}`
- Drawn: {settings.n} for each prompt, temperature {settings.temperature:g}, top_p {settings.top_p:g}, at most \
{settings.max_new_tokens} tokens, seed {settings.seed}, {settings.batch_size} sequences at a time, \
by {run.engine}{rewarded}
- Kept: {_rule(run)}
- Command: `{origin.command}`

| figure | value |
|---|---|
{table}
{_distribution(completions, kept)}"""
    DatasetCard(text).save(folder / "README.md")


def _distribution(completions: list[list[Completion]], kept: Dataset) -> str:
    series = {"all drawn": [c.score for group in completions for c in group]}
    series |= {name: kept[name] for name in ("score", "score_chosen", "score_rejected") if name in kept.column_names}
    lines = [
        f"| {name.replace('score_', 'kept, ').replace('score', 'kept')} | "
        + " | ".join(f"{q:.4g}" for q in quantiles(known))
        + " |"
        for name, values in series.items()
        if (known := [v for v in values if v is not None])
    ]
    if not lines:
        return ""
    head = "\n## Scores\n\n| | lowest | 5 % | 25 % | median | 75 % | 95 % | highest |\n" + "|---" * 8 + "|\n"
    return head + "\n".join(lines) + "\n"


def _rule(run: Run) -> str:
    settings = run.sample
    rule = {
        "all": "all",
        "best": f"the best of {settings.n} of each prompt",
        "top": f"the highest {settings.fraction:.4g} of all scores",
        "threshold": f"scores of at least {settings.threshold}",
        "pairs": "the best and the worst of each prompt, "
        + (f"at least {settings.margin:g} apart" if settings.margin else "if their scores differ"),
    }[settings.select]
    return rule + ("" if settings.unfinished else "; none that is empty or cut off")


def _figure(name: str, value: float) -> tuple[str, str]:
    """A figure's title, and its value; counts have no decimals."""
    return TITLES.get(name) or title(name), f"{value:,}" if isinstance(value, int) else format_number(value)


def show_plan(run: Run, plan: Plan, directory: RunDirectory) -> None:
    """The plan, a line per fact."""
    settings = run.sample
    mean = fmean(map(len, plan.encoded))
    print_facts(
        {
            "run": f"sample, {settings.n} completions of up to {settings.max_new_tokens} tokens for each prompt",
            "model": plan.source.name,
            "prompts": f"{plan.data['path']}, {settings.split}: {len(plan.prompts)} of about {mean:.0f} tokens, in "
            f"{len(plan.batches)} batch{'es' if len(plan.batches) > 1 else ''}",
            "rewards": ", ".join(run.reward) or "none: completions are not scored",
            "kept": _rule(run),
            "directory": str(directory.path),
        }
    )


def show(directory: RunDirectory) -> None:
    """The figures, and how to train on the data."""
    record = directory.record() or {}
    table = Table(title=directory.name, title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name in sorted(record["metrics"], key=lambda name: ([*TITLES, name].index(name), name)):
        table.add_row(*map(escape, _figure(name, record["metrics"][name])))
    console.print(table)
    kind = "dpo" if record["sample"]["select"] == "pairs" else "sft"
    command = training_command(kind, record["model"]["path"], record["recipe"], str(directory.path))
    print_plain(f"data     {directory.data}")
    print_plain(f"run      {directory.path}")
    print_plain(f"next     {command}")
