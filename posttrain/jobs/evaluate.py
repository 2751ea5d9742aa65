"""Measure a run or a model on held-out data, alone or against another, with confidence intervals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import Origin, Run
from posttrain.console import print_plain, quiet_libraries, show_status
from posttrain.jobs.evaluate_plan import Candidate, Measurements, Plan, prepare
from posttrain.runs.directory import RunDirectory
from posttrain.runs.lineage import Source

if TYPE_CHECKING:
    from posttrain.models.generate import Generated
    from posttrain.probe.heldout import Answer


def evaluate(run: Run, origin: Origin) -> float | tuple[float, ...] | None:
    """Evaluate, or say that it is done; returns the metric named by `objective`."""
    from posttrain.jobs import common, evaluate_results

    quiet_libraries()

    return common.run_once(run, origin, prepare, _evaluate, evaluate_results)


def _evaluate(run: Run, origin: Origin, plan: Plan, directory: RunDirectory) -> None:
    from posttrain.jobs import common, evaluate_results
    from posttrain.training import out_of_memory

    common.write_start(run, origin, directory, [candidate.source for candidate in plan.candidates], plan.data)
    with out_of_memory.explain_memory_errors("set a smaller probe.batch_size, or trainer.args.max_length"):
        measured = [_measure_model(run, plan, candidate) for candidate in plan.candidates]
    with out_of_memory.explain_memory_errors("set a smaller reward.NAME.args.batch_size"):
        judges = _score(run, plan, measured)
    metrics = evaluate_results.metrics(run, plan, measured)
    evaluate_results.write_scores(directory.scores, run, plan, measured)
    values, intervals, counts = evaluate_results.summary(metrics, run.evaluate)
    notes = evaluate_results.notes(run, plan, measured) + [f"{name}: {counted}" for name, counted in judges.items()]
    results: dict[str, Any] = {"judges": {name: counted.figures() for name, counted in judges.items()}}
    if run.evaluate.tasks:
        for candidate, its in zip(plan.candidates, measured, strict=True):
            notes += [f"{candidate.source.name}: {note}" for note in its.benchmarks.notes()]
        results["benchmarks"] = [one.benchmarks.results for one in measured]
    if (calibration := evaluate_results.calibrate(plan, measured[0])) is not None:
        notes += evaluate_results.keep_calibration(calibration, directory, plan.candidates[0].source)
        results["calibration"] = asdict(calibration)
    common.write_end(
        directory,
        metrics=values,
        intervals=intervals,
        counts=counts,
        notes=notes,
        evaluate=asdict(run.evaluate),
        **results,
    )


def _measure_model(run: Run, plan: Plan, candidate: Candidate) -> Measurements:
    """Everything that needs the model, which is freed afterwards."""
    from posttrain.jobs import benchmarks
    from posttrain.models import weights
    from posttrain.probe import heldout
    from posttrain.training.counters import Counter

    measured = Measurements()
    if len(plan.candidates) > 1:
        print_plain(f"measure  {candidate.source.name}")
    if trainers.of(run.trainer.kind).scores:
        measured.scores, measured.lengths = _reward_scores(candidate, plan.rows)
        weights.free_memory()
        return measured
    with show_status("Loading the model"):
        model = weights.load(candidate.source)
    if plan.rows:
        measured.answers, measured.reference = _likelihoods(plan, candidate, model)
    if run.evaluate.tasks:
        with show_status(f"Benchmarks: {', '.join(run.evaluate.tasks)}"):
            measured.benchmarks = benchmarks.run(model, candidate.tokenizer, run.evaluate, run.probe.batch_size)
    if plan.prompts:
        if run.engine == "vllm":  # vLLM takes the whole memory of the GPU
            del model
            weights.free_memory()
            model = None
        measured.drawn = _draw(run, plan, candidate, model)
    del model
    weights.free_memory()
    if isinstance(candidate.reference, Source) and plan.rows:
        model = weights.load(candidate.reference)
        with Counter("reference", sum(map(len, measured.answers))) as bar:
            measured.reference = heldout.answers(
                model, candidate.tokenizer, plan.rows, candidate.max_length, bar.advance
            )
        del model
        weights.free_memory()
    return measured


def _draw(run: Run, plan: Plan, candidate: Candidate, model: Any) -> dict[str, list[Generated]]:
    """Completions of each set of prompts, by `model`, or by the run's engine."""
    import torch

    from posttrain.models import engines
    from posttrain.models.generate import encode_prompts, generate
    from posttrain.probe.callback import SEED
    from posttrain.training.counters import Counter

    limit, batch_size = run.probe.max_new_tokens, run.probe.batch_size
    template = run.trainer.args.get("chat_template_kwargs")
    encoded = {name: encode_prompts(candidate.tokenizer, rows, template) for name, rows in plan.prompts.items()}
    longest = max(len(ids) for prompts in encoded.values() for ids in prompts) + limit
    sampler = engines.load(run.engine, candidate.source, batch_size, longest, model)
    drawn = {}
    torch.manual_seed(SEED)
    for name, prompts in encoded.items():
        with Counter(name, len(prompts)) as bar:

            def advance(part: list[Generated], by: Callable[[int], None] = bar.advance) -> None:
                by(len(part))

            drawn[name] = generate(
                sampler,
                candidate.tokenizer,
                prompts,
                max_new_tokens=limit,
                batch_size=batch_size,
                do_sample=name == "sampled",
                progress=advance,
            )
    return drawn


def _likelihoods(plan: Plan, candidate: Candidate, model: Any) -> tuple[list[list[Answer]], list[list[Answer]] | None]:
    """Log-probabilities under the policy, and under its reference if that is the same model without the adapter."""
    from posttrain.probe import heldout
    from posttrain.training.counters import Counter

    answers = len(plan.rows) * (2 if "rejected" in plan.rows[0] else 1)
    with Counter("held out", answers) as bar:
        policy = heldout.answers(model, candidate.tokenizer, plan.rows, candidate.max_length, bar.advance)
    if candidate.reference != "adapter off":
        return policy, None
    with Counter("reference", answers) as bar, model.disable_adapter():
        return policy, heldout.answers(model, candidate.tokenizer, plan.rows, candidate.max_length, bar.advance)


def _reward_scores(
    candidate: Candidate, rows: list[dict[str, Any]]
) -> tuple[list[list[float | None]], list[list[int]]]:
    """A reward model's scores of chosen and rejected, and their lengths in its tokens."""
    from posttrain.probe.heldout import SIDES
    from posttrain.rewards.model import RewardModel

    model = RewardModel(candidate.source.name)
    limit = candidate.max_length or sys.maxsize
    # Pairs that are too long are left out, as in training.
    tokens = [[model.ids(row["prompt"], row[side], row) for side in SIDES] for row in rows]
    fits = [all(len(ids) <= limit for ids in pair) for pair in tokens]
    lengths = [[model.length(row["prompt"], ids, row) for ids in pair] for row, pair in zip(rows, tokens, strict=True)]
    kept = [row for row, fit in zip(rows, fits, strict=True) if fit]
    prompts = [row["prompt"] for row in kept]
    settings = [name for name in ("tools", "chat_template_kwargs") if kept and name in kept[0]]
    columns = {name: [row[name] for row in kept] * len(SIDES) for name in settings}
    # Both sides in one call, so that their prompt is computed once.
    completions = [row[side] for side in SIDES for row in kept]
    scores = model(completions=completions, prompts=prompts * len(SIDES), **columns)
    scored = iter(zip(scores[: len(kept)], scores[len(kept) :], strict=True))
    return [list(next(scored)) if fit else [None, None] for fit in fits], lengths


def _score(run: Run, plan: Plan, measured: list[Measurements]) -> dict[str, Any]:
    """Score all completions, after the policies have left memory; returns the judges' counts."""
    from posttrain import rewards

    entries = {**run.reward, **run.probe.judges}
    if not plan.prompts or not entries:
        return {}
    functions = rewards.resolve(entries)
    # With two models, a judge compares their answers.
    pairwise = {
        name: function
        for name, function in functions.items()
        if len(measured) > 1 and rewards.compares(function) and entries[name].args.get("column") is None
    }
    single = {name: function for name, function in functions.items() if name not in pairwise}
    for each in measured:
        for name, drawn in each.drawn.items():
            found = rewards.score(single, plan.prompts[name], drawn)
            each.rewards[name] = {
                reward: [float(v) if rewards.applies(v) else None for v in values] for reward, values in found.items()
            }
    for name, rows in plan.prompts.items():
        for reward, function in pairwise.items():
            both = rewards.compare_completions(function, rows, measured[0].drawn[name], measured[1].drawn[name])
            for each, values in zip(measured, both, strict=True):
                each.rewards[name][reward] = values
    return rewards.take_judge_counts(functions)
