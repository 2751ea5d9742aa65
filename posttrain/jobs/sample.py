"""Make a data set of a model's own completions: draw, score, select, write.

Completions and rewards are kept batch by batch (`completions.jsonl`, `rewards.jsonl`), each batch with random numbers
of its own, so that a run which was killed goes on where it was and ends with the same data.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from posttrain.config import Origin, Run
from posttrain.console import console, quiet_libraries, tell
from posttrain.errors import PosttrainError
from posttrain.journal import Journal
from posttrain.lineage import Source
from posttrain.rundir import RunDirectory

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Prompts are sorted by length within windows of this many batches, longest first: what does not fit fails at once.
WINDOW = 64
# So many completions that are all cut off say that max_new_tokens is too small.
EARLY = 64


def sample(run: Run, origin: Origin) -> float | tuple[float, ...] | None:
    """Sample, or go on, or say that it is done; returns the metric named by `objective`."""
    from posttrain.jobs import common

    quiet_libraries()
    from posttrain.jobs import samples

    return common.once(run, origin, prepare, _sample, samples)


@dataclass
class Plan:
    """Everything but the weights. `batches` hold indices of `prompts`, whose token ids are `encoded`."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    prompts: Dataset
    encoded: list[list[int]]
    batches: list[list[int]]
    data: dict[str, Any]


def prepare(run: Run) -> Plan:
    """Find model, tokenizer and prompts; raises `PosttrainError` for what does not fit together."""
    from posttrain import lineage, models, rewards
    from posttrain.data import load_prompts
    from posttrain.generate import encode_prompts
    from posttrain.jobs import common

    source = common.source(run)
    key = "model.init_from" if run.model.init_from else "model.path"
    context = lineage.check_model(source, key, scores=False)
    tokenizer = common.tokenizer(run, source)
    prompts, data = load_prompts(run.data, run.trainer.kind, run.sample.split)
    if run.sample.prompts is not None:
        prompts = prompts.select(range(min(run.sample.prompts, len(prompts))))
    models.check_template(tokenizer, prompts[0], run.model)
    errors = rewards.missing_columns(run.reward, "reward", prompts.features)
    if errors := errors + rewards.reach(run.reward, "reward"):
        raise PosttrainError("\n".join(errors))
    encoded = encode_prompts(tokenizer, prompts)
    common.check_context("sample.max_new_tokens", run.sample.max_new_tokens, max(map(len, encoded)), context)
    plan = batches([len(ids) for ids in encoded], max(run.sample.batch_size // run.sample.n, 1))
    return Plan(source, tokenizer, prompts, encoded, plan, data)


def batches(lengths: list[int], size: int, window: int = WINDOW) -> list[list[int]]:
    """Indices in batches of `size`: sorted by length, longest first, within windows of `window` batches."""
    result = []
    for start in range(0, len(lengths), size * window):
        part = sorted(range(start, min(start + size * window, len(lengths))), key=lambda i: -lengths[i])
        result += [part[i : i + size] for i in range(0, len(part), size)]
    return result


def _sample(run: Run, origin: Origin, plan: Plan, directory: RunDirectory) -> None:
    from posttrain.jobs import common, samples

    common.begin(run, origin, directory, [plan.source], plan.data)
    drawn = Journal(directory.path / "completions.jsonl")
    _draw(run, origin, plan, drawn)
    _check_ended(run, drawn, least=1)
    # The policy's memory is free by now: a reward model may take it.
    common.release()
    scored = Journal(directory.path / "rewards.jsonl")
    with common.enough_memory("set a smaller reward.NAME.args.batch_size"):
        _score(run, plan, drawn, scored)
    completions = samples.collect(len(plan.prompts), drawn.done, scored.done, run)
    rows = samples.rows(run, plan.prompts, completions)
    metrics = samples.metrics(completions, rows, drawn.done)
    half = directory.path / "data.incomplete"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    rows.to_parquet(half / "train.parquet")
    samples.write_card(half, run, origin, plan, completions, rows, metrics)
    directory.put_data(half)
    common.end(directory, metrics=metrics, sample=asdict(run.sample), judges=_judges(scored))


def _draw(run: Run, origin: Origin, plan: Plan, journal: Journal) -> None:
    """Completions of the batches that are not in the journal yet."""
    import torch

    from posttrain import lineage
    from posttrain.generate import generate
    from posttrain.interrupt import Interrupt
    from posttrain.jobs import common
    from posttrain.progress import Counter

    if len(journal.done) == len(plan.batches):
        return
    settings = run.sample
    with console.status("Loading the model") if console.is_terminal else nullcontext():
        model = lineage.load(plan.source)
    done, tokens, ended, count = len(journal.done), 0, 0, 0
    if done:
        console.print(f"Going on after {done} of {len(plan.batches)} batches")
    began = time.monotonic()
    mend = "set a smaller sample.batch_size; as that changes what is drawn, sampling starts anew"
    label = f"sampling {settings.n} x"
    prompts_done = sum(len(batch) for batch in plan.batches[:done])
    with Counter(label, len(plan.encoded), prompts_done) as bar, Interrupt() as interrupt, common.enough_memory(mend):
        for number in range(done, len(plan.batches)):
            start, indices = time.monotonic(), plan.batches[number]
            torch.manual_seed(batch_seed(settings.seed, number))
            completions = generate(
                model,
                plan.tokenizer,
                [plan.encoded[i] for i in indices for _ in range(settings.n)],
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.batch_size,
                temperature=settings.temperature,
                top_p=settings.top_p,
            )
            kept = [{"ids": d.ids, "text": d.text, "ended": d.ended} for d in completions]
            seconds = round(time.monotonic() - start, 3)
            journal.append({"batch": number, "prompts": indices, "completions": kept, "seconds": seconds})
            tokens, count = tokens + sum(len(d.ids) for d in completions), count + len(completions)
            ended += sum(d.ended for d in completions)
            rate = tokens / (time.monotonic() - began)
            bar.advance(len(indices), f"{rate:.0f} tokens/s  {ended / count:.0%} ended")
            _check_ended(run, journal, EARLY)
            if interrupt.signal and number + 1 < len(plan.batches):
                console.print(f"Stopped by {interrupt.signal}. Continue with: {origin.command}", soft_wrap=True)
                raise SystemExit(128 + interrupt.number)


def batch_seed(seed: int, number: int) -> int:
    """The seed of batch `number`: what is drawn depends on these two, not on what was drawn before in this process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:8], "big") >> 1


def _check_ended(run: Run, journal: Journal, least: int) -> None:
    """Raise `PosttrainError` when all of the first completions, at least so many, were cut off and will be left out."""
    if run.sample.unfinished:
        return
    drawn = 0
    for piece in journal.done:
        if any(completion["ended"] for completion in piece["completions"]):
            return
        drawn += len(piece["completions"])
    if drawn >= least:
        raise PosttrainError(
            f"sample.max_new_tokens={run.sample.max_new_tokens}: all of the first {drawn} completions are cut off by "
            "it, and such completions are left out; raise it, or keep them with sample.unfinished=true"
        )


def _score(run: Run, plan: Plan, drawn: Journal, journal: Journal) -> None:
    """Rewards of the completions whose batch is not in the journal yet, and what judges among them counted."""
    from posttrain import rewards
    from posttrain.generate import Drawn
    from posttrain.progress import Counter

    if not run.reward or len(journal.done) == len(drawn.done):
        return
    functions = rewards.resolve(run.reward)
    with Counter("scoring", len(drawn.done), len(journal.done)) as bar:
        for piece in drawn.done[len(journal.done) :]:
            indices = [i for i in piece["prompts"] for _ in range(run.sample.n)]
            completions = [
                Drawn(plan.encoded[i], d["ids"], d["text"], d["ended"])
                for i, d in zip(indices, piece["completions"], strict=True)
            ]
            values = rewards.score(functions, [plan.prompts[i] for i in indices], completions)
            plain = {name: [float(v) if rewards.applies(v) else None for v in row] for name, row in values.items()}
            counted = {name: vars(counts) for name, counts in rewards.counted(functions).items()}
            journal.append({"batch": piece["batch"], "rewards": plain, **({"judges": counted} if counted else {})})
            bar.advance(1)


def _judges(journal: Journal) -> dict[str, dict[str, float]]:
    """The figures of judges over all batches."""
    from posttrain.rewards.judge import Counts

    totals: dict[str, Counts] = {}
    for piece in journal.done:
        for name, counts in piece.get("judges", {}).items():
            totals.setdefault(name, Counts()).add(Counts(**counts))
    for name, total in totals.items():
        tell(f"note     {name}: {total}")
    return {name: total.figures() for name, total in totals.items()}
