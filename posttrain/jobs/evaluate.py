"""Measure a run or a model on held-out data, alone or against another, with confidence intervals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from posttrain.config import Origin, Run
from posttrain.console import console, quiet_libraries
from posttrain.errors import PosttrainError
from posttrain.lineage import Source
from posttrain.rundir import RunDirectory
from posttrain.trainers import KINDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.generate import Drawn
    from posttrain.heldout import Answer

PREFERENCES = ("dpo", "kto")


def evaluate(run: Run, origin: Origin) -> float | tuple[float, ...] | None:
    """Evaluate, or say that it is done; returns the metric named by `objective`."""
    from posttrain.jobs import common

    quiet_libraries()
    from posttrain.jobs import evaluation

    return common.once(run, origin, prepare, _evaluate, evaluation)


@dataclass
class Judged:
    """A model to evaluate. `reference` is that of its implicit reward: "adapter off", a source, or None.

    `why` says why there is none.
    """

    source: Source
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    reference: Source | str | None = None
    why: str | None = None


@dataclass
class Plan:
    """Everything but the weights. `rows` are those of the trainer's kind; `prompts` are sampled by set."""

    judged: list[Judged]
    rows: list[dict[str, Any]]
    prompts: dict[str, list[dict[str, Any]]]
    data: dict[str, Any]


@dataclass
class Said:
    """What one model says of held-out data: how likely it finds answers, how it scores them, and its own by set.

    `lengths` are those of the answers that were scored, in tokens of the reward model.
    """

    answers: list[list[Answer]] = field(default_factory=list)
    reference: list[list[Answer]] | None = None
    scores: list[list[float | None]] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    drawn: dict[str, list[Drawn]] = field(default_factory=dict)
    rewards: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)


def prepare(run: Run) -> Plan:
    """Find models, tokenizers and held-out rows; raises `PosttrainError` for what does not fit together."""
    from posttrain import rewards
    from posttrain.data import load_held_out

    kind = run.trainer.kind
    data = load_held_out(run.data, kind)
    rows = [] if KINDS[kind].online else list(data.train)
    prompts: dict[str, list[dict[str, Any]]] = {}
    if data.prompts is not None and kind != "reward":
        for name, count in (("sampled", run.probe.prompts), ("greedy", run.probe.greedy_prompts)):
            if count:
                prompts[name] = list(data.prompts.select(range(min(count, len(data.prompts)))))
        columns = data.prompts.features
        errors = [e for path, entries in run.rewards.items() for e in rewards.missing_columns(entries, path, columns)]
        if prompts:
            errors += [e for path, entries in run.rewards.items() for e in rewards.reach(entries, path)]
        if errors:
            raise PosttrainError("\n".join(errors))
    judged = [_judged(run, None, "model.init_from" if run.model.init_from else "model.path", rows, prompts)]
    if run.evaluate.against:
        judged.append(_judged(run, run.evaluate.against, "evaluate.against", rows, prompts))
    return Plan(judged, rows, prompts, data.source)


def _judged(
    run: Run, path: str | None, key: str, rows: list[dict[str, Any]], prompts: dict[str, list[dict[str, Any]]]
) -> Judged:
    from posttrain import lineage, models
    from posttrain.generate import encode_prompts
    from posttrain.jobs import common

    source = common.source(run, path, key)
    context = lineage.check_model(source, key, scores=run.trainer.kind == "reward")
    tokenizer = common.tokenizer(run, source)
    first = next(row for part in (rows, *prompts.values()) for row in part)
    models.check_template(tokenizer, first, run.model)
    longest = max((len(ids) for part in prompts.values() for ids in encode_prompts(tokenizer, part)), default=0)
    common.check_context("probe.max_new_tokens", run.probe.max_new_tokens, longest, context)
    limits = [limit for limit in (run.trainer.args.get("max_length"), context) if limit]
    judged = Judged(source, tokenizer, min(limits, default=None))
    if run.trainer.kind in PREFERENCES:
        judged.reference, judged.why = reference(source)
    return judged


def reference(source: Source) -> tuple[Source | str | None, str | None]:
    """What the policy of `source` is measured against: the model that its run started from; or why there is none."""
    from omegaconf import OmegaConf

    from posttrain import lineage

    if source.run is None:
        known = "adapter off" if source.adapter else None
        return known, None if known else f"{source.name} is no run and no adapter, so nothing says what it started from"
    model = OmegaConf.load(source.run.path / "config.yaml").model
    start = model.get("init_from")
    if source.adapter and (not start or "merge" in source.record):
        return "adapter off", None
    try:
        found = lineage.source(start or model.path, None if start else model.revision, "the reference")
    except PosttrainError as error:
        return None, str(error)
    return replace(found, dtype=source.dtype, quantization=found.quantization or source.quantization), None


def _evaluate(run: Run, origin: Origin, plan: Plan, directory: RunDirectory) -> None:
    from posttrain.jobs import common, evaluation

    common.begin(run, origin, directory, [judged.source for judged in plan.judged], plan.data)
    with common.enough_memory("set a smaller probe.batch_size, or trainer.args.max_length"):
        said = [_ask(run, plan, judged) for judged in plan.judged]
    with common.enough_memory("set a smaller reward.NAME.args.batch_size"):
        judged = _score(run, plan, said)
    metrics = evaluation.metrics(run, plan, said)
    evaluation.write_scores(directory.scores, run, plan, said)
    values, intervals, counts = evaluation.summary(metrics, run.evaluate)
    notes = evaluation.notes(run, plan, said) + [f"{name}: {counted}" for name, counted in judged.items()]
    results: dict[str, Any] = {"judges": {name: counted.figures() for name, counted in judged.items()}}
    if (calibration := evaluation.calibrate(plan, said[0])) is not None:
        notes += evaluation.keep_calibration(calibration, directory, plan.judged[0].source)
        results["calibration"] = asdict(calibration)
    common.end(
        directory,
        metrics=values,
        intervals=intervals,
        counts=counts,
        notes=notes,
        evaluate=asdict(run.evaluate),
        **results,
    )


def _ask(run: Run, plan: Plan, judged: Judged) -> Said:
    """Everything that needs the model; it is out of memory again afterwards."""
    import torch

    from posttrain import heldout, lineage
    from posttrain.generate import encode_prompts, generate
    from posttrain.jobs import common
    from posttrain.probe import SEED
    from posttrain.progress import Counter

    said = Said()
    if run.trainer.kind == "reward":
        said.scores, said.lengths = _reward_scores(judged, plan.rows)
        common.release()
        return said
    with console.status("Loading the model") if console.is_terminal else nullcontext():
        model = lineage.load(judged.source)
    if plan.rows:
        said.answers, said.reference = _likelihoods(plan, judged, model)
    torch.manual_seed(SEED)
    for name, rows in plan.prompts.items():
        with Counter(name, len(rows)) as bar:

            def drawn(part: list[Drawn], advance: Callable[[int], None] = bar.advance) -> None:
                advance(len(part))

            said.drawn[name] = generate(
                model,
                judged.tokenizer,
                encode_prompts(judged.tokenizer, rows),
                max_new_tokens=run.probe.max_new_tokens,
                batch_size=run.probe.batch_size,
                do_sample=name == "sampled",
                progress=drawn,
            )
    del model
    common.release()
    if isinstance(judged.reference, Source) and plan.rows:
        model = lineage.load(judged.reference)
        with Counter("reference", sum(map(len, said.answers))) as bar:
            said.reference = heldout.answers(model, judged.tokenizer, plan.rows, judged.max_length, bar.advance)
        del model
        common.release()
    return said


def _likelihoods(plan: Plan, judged: Judged, model: Any) -> tuple[list[list[Answer]], list[list[Answer]] | None]:
    """Of the policy, and of its reference where that is the same model with the adapter off."""
    from posttrain import heldout
    from posttrain.progress import Counter

    answers = len(plan.rows) * (2 if "rejected" in plan.rows[0] else 1)
    with Counter("held out", answers) as bar:
        policy = heldout.answers(model, judged.tokenizer, plan.rows, judged.max_length, bar.advance)
    if judged.reference != "adapter off":
        return policy, None
    with Counter("reference", answers) as bar, model.disable_adapter():
        return policy, heldout.answers(model, judged.tokenizer, plan.rows, judged.max_length, bar.advance)


def _reward_scores(judged: Judged, rows: list[dict[str, Any]]) -> tuple[list[list[float | None]], list[list[int]]]:
    """What a reward model gives to chosen and rejected, and their lengths in its tokens."""
    from posttrain.heldout import SIDES
    from posttrain.rewards.model import RewardModel

    model = RewardModel(judged.source.name)
    limit = judged.max_length or sys.maxsize
    # As in training, where pairs that are too long are left out.
    tokens = [[model.ids(row["prompt"], row[side]) for side in SIDES] for row in rows]
    fits = [all(len(ids) <= limit for ids in pair) for pair in tokens]
    lengths = [[model.length(row["prompt"], ids) for ids in pair] for row, pair in zip(rows, tokens, strict=True)]
    kept = [row for row, fit in zip(rows, fits, strict=True) if fit]
    prompts = [row["prompt"] for row in kept]
    sides = [model(completions=[row[side] for row in kept], prompts=prompts) for side in SIDES]
    scored = iter(zip(*sides, strict=True))
    return [list(next(scored)) if fit else [None, None] for fit in fits], lengths


def _score(run: Run, plan: Plan, said: list[Said]) -> dict[str, Any]:
    """Rewards of everything drawn, with the policies out of memory; returns what judges counted."""
    from posttrain import rewards

    entries = {**run.reward, **run.probe.judges}
    if not plan.prompts or not entries:
        return {}
    functions = rewards.resolve(entries)
    # With two models, a judge compares the one's answer with the other's.
    pairwise = {
        name: function
        for name, function in functions.items()
        if len(said) > 1 and hasattr(function, "compare") and entries[name].args.get("column") is None
    }
    single = {name: function for name, function in functions.items() if name not in pairwise}
    for each in said:
        for name, drawn in each.drawn.items():
            found = rewards.score(single, plan.prompts[name], drawn)
            each.rewards[name] = {
                reward: [float(v) if rewards.applies(v) else None for v in values] for reward, values in found.items()
            }
    for name, rows in plan.prompts.items():
        for reward, function in pairwise.items():
            both = rewards.versus(function, rows, said[0].drawn[name], said[1].drawn[name])
            for each, values in zip(said, both, strict=True):
                each.rewards[name][reward] = values
    return rewards.counted(functions)
