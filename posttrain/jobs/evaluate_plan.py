"""The inputs of job=evaluate: models, tokenizers and held-out rows, found before weights load."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import Run
from posttrain.errors import PosttrainError
from posttrain.jobs.benchmarks import Scores
from posttrain.runs.lineage import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.models.generate import Generated
    from posttrain.probe.heldout import Answer


PREFERENCES = ("DPOTrainer", "KTOTrainer")


@dataclass
class Candidate:
    """A model to evaluate. `reference` is for its implicit reward: "adapter off", a source, or None.

    `why` says why there is no reference.
    """

    source: Source
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    reference: Source | str | None = None
    why: str | None = None


@dataclass
class Plan:
    """Everything but the weights. `rows` are held-out rows for the trainer's kind; `prompts` are by set."""

    candidates: list[Candidate]
    rows: list[dict[str, Any]]
    prompts: dict[str, list[dict[str, Any]]]
    data: dict[str, Any]


@dataclass
class Measurements:
    """The measurements of one model on held-out data: likelihoods of answers, scores, and its own answers by set.

    `lengths` are the lengths of the scored answers, in tokens of the reward model.
    """

    answers: list[list[Answer]] = field(default_factory=list)
    reference: list[list[Answer]] | None = None
    scores: list[list[float | None]] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    drawn: dict[str, list[Generated]] = field(default_factory=dict)
    rewards: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    benchmarks: Scores = field(default_factory=Scores)


def prepare(run: Run) -> Plan:
    """Find models, tokenizers and held-out rows; raises `PosttrainError` for what does not fit together."""
    from posttrain import rewards
    from posttrain.data.held_out import load_held_out
    from posttrain.jobs import benchmarks

    kind = trainers.of(run.trainer.kind)
    if run.evaluate.tasks:
        if kind.scores:
            raise PosttrainError("evaluate.tasks: a reward model answers no questions; leave them out")
        benchmarks.manager(run.evaluate)
    data = load_held_out(run.data, run.trainer.kind)
    rows = [] if kind.samples_completions else list(data.train)
    prompts: dict[str, list[dict[str, Any]]] = {}
    if data.prompts is not None and not kind.scores:
        for name, count in (("sampled", run.probe.prompts), ("greedy", run.probe.greedy_prompts)):
            if count:
                prompts[name] = list(data.prompts.select(range(min(count, len(data.prompts)))))
        errors = [
            e for path, entries in run.rewards.items() for e in rewards.column_errors(entries, path, data.prompts)
        ]
        if prompts:
            errors += [e for path, entries in run.rewards.items() for e in rewards.check_reachable(entries, path)]
        if errors:
            raise PosttrainError("\n".join(errors))
    candidates = [_candidate(run, None, "model.init_from" if run.model.init_from else "model.path", rows, prompts)]
    if run.evaluate.against:
        candidates.append(_candidate(run, run.evaluate.against, "evaluate.against", rows, prompts))
    return Plan(candidates, rows, prompts, data.source)


def _candidate(
    run: Run, path: str | None, key: str, rows: list[dict[str, Any]], prompts: dict[str, list[dict[str, Any]]]
) -> Candidate:
    from posttrain.jobs import common
    from posttrain.models import engines, tokenizers, weights
    from posttrain.models.generate import encode_prompts

    source = common.model_source(run, path, key)
    context = weights.check_model(source, key, scores=trainers.of(run.trainer.kind).scores)
    engines.check_source(run.engine, source, key)
    tokenizer = common.tokenizer(run, source)
    first = next(row for part in (rows, *prompts.values()) for row in part)
    tokenizers.check_template(tokenizer, first, run.model)
    template = run.trainer.args.get("chat_template_kwargs")
    encoded = (encode_prompts(tokenizer, part, template) for part in prompts.values())
    longest = max((len(ids) for part in encoded for ids in part), default=0)
    common.check_context("probe.max_new_tokens", run.probe.max_new_tokens, longest, context)
    limits = [limit for limit in (run.trainer.args.get("max_length"), context) if limit]
    candidate = Candidate(source, tokenizer, min(limits, default=None))
    if trainers.of(run.trainer.kind).is_a(*PREFERENCES):
        candidate.reference, candidate.why = reference(source)
    return candidate


def reference(source: Source) -> tuple[Source | str | None, str | None]:
    """The reference of `source`: the model that its run started from; or why there is none."""
    from posttrain.runs import lineage, stored_config

    if source.run is None:
        known = "adapter off" if source.adapter else None
        return known, None if known else f"{source.name} is no run and no adapter, so nothing says what it started from"
    model = stored_config.load(source.run.path).model
    start = model.get("init_from")
    if source.adapter and (not start or "merge" in source.record):
        return "adapter off", None
    try:
        found = lineage.source(start or model.path, None if start else model.revision, "the reference")
    except PosttrainError as error:
        return None, str(error)
    return replace(found, dtype=source.dtype, quantization=found.quantization or source.quantization), None
