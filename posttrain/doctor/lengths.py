"""Lengths of rows in tokens, what `max_length` cuts off, and whether EOS is learnt."""

from dataclasses import dataclass

import numpy as np

from posttrain.config import trainers
from posttrain.config.schema import Run
from posttrain.doctor.finding import Example, Finding, excerpt, finding, severity, share
from posttrain.doctor.sequences import Sequence
from posttrain.doctor.texts import Texts
from posttrain.probe.intervals import wilson

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Tokenized:
    """A uniform sample of rows as sequences (all rows if `complete`), and the longest of the others by characters."""

    sample: list[list[Sequence]]
    longest: list[list[Sequence]]
    rows: int

    @property
    def complete(self) -> bool:
        return len(self.sample) == self.rows

    @property
    def where(self) -> str:
        return "" if self.complete else f" (of a sample of {len(self.sample):,} rows)"


def limit(run: Run) -> tuple[int | None, str]:
    """The trainer's `max_length` (None: nothing is cut) and its truncation mode."""
    if trainers.of(run.trainer.kind).samples_completions:
        return None, "keep_start"
    return run.trainer.args.get("max_length", 1024), run.trainer.args.get("truncation_mode", "keep_start")


def check(run: Run, texts: Texts, tokenized: Tokenized, eos: int) -> list[Finding]:
    """Tokens and lengths, what is cut and dropped, and EOS."""
    findings = [_tokens(tokenized)]
    if trainers.of(run.trainer.kind).samples_completions:
        return findings
    findings += [_dropped(run, texts, tokenized), _cut(run, texts, tokenized)]
    return findings if trainers.of(run.trainer.kind).scores else [*findings, _eos(run, texts, tokenized, eos)]


def _tokens(tokenized: Tokenized) -> Finding:
    lengths = np.array([max(len(s.ids) for s in row) for row in tokenized.sample])
    every = sum(len(s.ids) for row in tokenized.sample for s in row)
    trained = sum(sum(s.trained) for row in tokenized.sample for s in row)
    total = every * tokenized.rows / len(tokenized.sample)
    longest = max(int(lengths.max()), *(len(s.ids) for row in tokenized.longest for s in row), 0)
    marks = {f"p{p}": float(np.percentile(lengths, p)) for p in PERCENTILES}
    about = "" if tokenized.complete else "about "
    return finding(
        "tokens",
        "info",
        f"{tokenized.rows:,} rows, {about}{total:,.0f} tokens; the longest sequence of "
        + ", ".join(f"{mark[1:]}%" for mark in marks)
        + " of the rows has at most "
        + ", ".join(f"{value:,.0f}" for value in marks.values())
        + f"; longest {longest:,}{tokenized.where}",
        {"rows": tokenized.rows, "tokens": total, "trained_share": trained / every, "longest": longest, **marks},
    )


def _dropped(run: Run, texts: Texts, tokenized: Tokenized) -> Finding:
    most, mode = limit(run)
    gone = [row for row in tokenized.sample if vanishes(row, most, mode)]
    listed = gone or [row for row in tokenized.longest if vanishes(row, most, mode)]
    total = len(tokenized.sample)
    says = f"{share(len(gone), total)} rows are left out by max_length={most}{tokenized.where}"
    if gone:
        says += ": an answer is longer" if trainers.of(run.trainer.kind).scores else ": the prompt alone fills it"
    if listed and not gone:
        says += f", but {len(listed)} of the {len(tokenized.longest)} longest others are"
    return finding(
        "lengths.dropped",
        severity(len(gone), total, run.doctor),
        says,
        {"rows": len(gone), "share": len(gone) / total, **_interval(len(gone), tokenized)},
        [Example(texts.split, row[0].row, _lengths(row, texts)) for row in listed[: run.doctor.examples]],
        "TRL leaves these rows out without a word: the completion would vanish, and nothing would be learnt.",
        _longer(tokenized.sample + tokenized.longest, "or shorten the prompts"),
    )


def _cut(run: Run, texts: Texts, tokenized: Tokenized) -> Finding:
    most, mode = limit(run)
    cut = [row for row in tokenized.sample if not vanishes(row, most, mode) and _loses(row, most, mode)]
    total = len(tokenized.sample)
    return finding(
        "lengths.cut",
        severity(len(cut), total, run.doctor),
        f"{share(len(cut), total)} rows lose a part of what is trained to max_length={most}{tokenized.where}",
        {"rows": len(cut), "share": len(cut) / total, **_interval(len(cut), tokenized)},
        [Example(texts.split, row[0].row, _lengths(row, texts)) for row in cut[: run.doctor.examples]],
        "An answer without its end teaches the model not to stop; of a pair, the halves are compared.",
        _longer(cut, "or take the rows out"),
    )


def _eos(run: Run, texts: Texts, tokenized: Tokenized, eos: int) -> Finding:
    """Whether EOS is learnt, over sequences that are not cut; another finding reports the cut ones."""
    most, _ = limit(run)
    whole = [s for row in tokenized.sample for s in row if most is None or len(s.ids) <= most]
    without = [s for s in whole if eos not in (i for i, trained in zip(s.ids, s.trained, strict=True) if trained)]
    level = severity(len(without), len(whole), run.doctor)
    return finding(
        "eos",
        level,
        f"EOS is trained on in {share(len(whole) - len(without), len(whole))} whole sequences{tokenized.where}",
        {"sequences": len(whole), "without": len(without)},
        [Example(texts.split, s.row, f"{s.side}: {excerpt(texts.row(s.row))}") for s in without[: run.doctor.examples]],
        "The model does not learn to stop: its answers run into the length limit.",
        "Set model.chat_template to one that ends an assistant turn with EOS, or model.eos_token to what it ends with.",
    )


def vanishes(row: list[Sequence], most: int | None, mode: str) -> bool:
    """Whether truncation leaves a sequence with nothing to train on: TRL drops such rows."""
    return any(not any(s.cut(most, mode).trained) for s in row)


def _loses(row: list[Sequence], most: int | None, mode: str) -> bool:
    return any(sum(s.cut(most, mode).trained) < sum(s.trained) for s in row)


def _interval(count: int, tokenized: Tokenized) -> dict[str, float]:
    """The 95% interval of a share that is estimated from a sample; {} if all rows were counted."""
    low, high = wilson(count, len(tokenized.sample))
    return {} if tokenized.complete else {"low": low, "high": high}


def _lengths(row: list[Sequence], texts: Texts) -> str:
    counted = ", ".join(f"{s.side} {len(s.ids):,} tokens, {sum(s.trained):,} trained" for s in row)
    return f"{counted}: {excerpt(texts.row(row[0].row), 80)}"


def _longer(rows: list[list[Sequence]], otherwise: str) -> str:
    needed = max((len(s.ids) for row in rows for s in row), default=0)
    return f"trainer.args.max_length={needed} keeps them all, where context and memory allow it; {otherwise}."
