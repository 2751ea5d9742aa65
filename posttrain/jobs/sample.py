"""Make a data set of a model's own completions: draw, score, select, write.

Completions and rewards are stored batch by batch (`completions.jsonl`, `rewards.jsonl`), and each batch has its own
random numbers, so that a killed run resumes and ends with the same data.
"""

import hashlib
import shutil
import time
from dataclasses import asdict

from posttrain.config.schema import Origin, Run
from posttrain.console import console, print_plain, quiet_libraries, show_status
from posttrain.errors import PosttrainError
from posttrain.jobs.sample_plan import Plan, prepare
from posttrain.runs.directory import RunDirectory
from posttrain.runs.journal import Journal

# If this many completions are all cut off, max_new_tokens is too small.
CHECK_ENDED_AFTER = 64


def sample(run: Run, origin: Origin) -> float | tuple[float, ...] | None:
    """Sample, or continue, or say that it is done; returns the metric named by `objective`."""
    from posttrain.jobs import common, sample_data

    quiet_libraries()

    return common.run_once(run, origin, prepare, _sample, sample_data)


def _sample(run: Run, origin: Origin, plan: Plan, directory: RunDirectory) -> None:
    from posttrain.jobs import common, sample_data
    from posttrain.models import weights
    from posttrain.training import out_of_memory

    common.write_start(run, origin, directory, [plan.source], plan.data)
    drawn = Journal(directory.path / "completions.jsonl")
    _draw(run, origin, plan, drawn)
    _check_ended(run, drawn, least=1)
    # The policy is no longer needed; free its memory for reward models.
    weights.free_memory()
    scored = Journal(directory.path / "rewards.jsonl")
    with out_of_memory.explain_memory_errors("set a smaller reward.NAME.args.batch_size"):
        _score(run, plan, drawn, scored)
    completions = sample_data.collect(len(plan.prompts), drawn.done, scored.done, run)
    rows = sample_data.rows(run, plan.prompts, completions)
    metrics = sample_data.metrics(completions, rows, drawn.done)
    temporary = directory.path / "data.incomplete"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    rows.to_parquet(temporary / "train.parquet")
    sample_data.write_card(temporary, run, origin, plan, completions, rows, metrics)
    directory.put(temporary, directory.data)
    common.write_end(directory, metrics=metrics, sample=asdict(run.sample), judges=_judges(scored))


def _draw(run: Run, origin: Origin, plan: Plan, journal: Journal) -> None:
    """Completions of the batches that are not in the journal yet."""
    import torch

    from posttrain.models import engines
    from posttrain.models.generate import generate
    from posttrain.training import out_of_memory
    from posttrain.training.counters import Counter
    from posttrain.training.signals import StopOnSignal

    if len(journal.done) == len(plan.batches):
        return
    settings = run.sample
    with show_status("Loading the model"):
        longest = max(map(len, plan.encoded)) + settings.max_new_tokens
        model = engines.load(run.engine, plan.source, settings.batch_size, longest)
    done, tokens, ended, count = len(journal.done), 0, 0, 0
    if done:
        console.print(f"Going on after {done} of {len(plan.batches)} batches")
    began = time.monotonic()
    fix = "set a smaller sample.batch_size; as that changes what is drawn, sampling starts anew"
    label = f"sampling {settings.n} x"
    prompts_done = sum(len(batch) for batch in plan.batches[:done])
    with (
        Counter(label, len(plan.encoded), prompts_done) as bar,
        StopOnSignal() as interrupt,
        out_of_memory.explain_memory_errors(fix),
    ):
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
            _check_ended(run, journal, CHECK_ENDED_AFTER)
            if interrupt.signal and number + 1 < len(plan.batches):
                console.print(f"Stopped by {interrupt.signal}. Continue with: {origin.command}", soft_wrap=True)
                raise SystemExit(128 + interrupt.number)


def batch_seed(seed: int, number: int) -> int:
    """The seed of batch `number`; so a batch does not depend on what this process has sampled before."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:8], "big") >> 1


def _check_ended(run: Run, journal: Journal, least: int) -> None:
    """Raise `PosttrainError` if the first completions, at least `least`, were all cut off and would be left out."""
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
    """Score the completions whose batch is not in the journal yet; the counts of judges are stored, too."""
    from posttrain import rewards
    from posttrain.models.generate import Generated
    from posttrain.training.counters import Counter

    if not run.reward or len(journal.done) == len(drawn.done):
        return
    functions = rewards.resolve(run.reward)
    with Counter("scoring", len(drawn.done), len(journal.done)) as bar:
        for piece in drawn.done[len(journal.done) :]:
            indices = [i for i in piece["prompts"] for _ in range(run.sample.n)]
            completions = [
                Generated(plan.encoded[i], d["ids"], d["text"], d["ended"])
                for i, d in zip(indices, piece["completions"], strict=True)
            ]
            values = rewards.score(functions, [plan.prompts[i] for i in indices], completions)
            plain = {name: [float(v) if rewards.applies(v) else None for v in row] for name, row in values.items()}
            counted = {name: vars(counts) for name, counts in rewards.take_judge_counts(functions).items()}
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
        print_plain(f"note     {name}: {total}")
    return {name: total.figures() for name, total in totals.items()}
