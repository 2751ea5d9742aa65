"""All checks that apply to a run's data, in the order a reader wants them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.config import Run
from posttrain.doctor import duplicates, language, lengths, noise, pairs, privacy, sequences, texts
from posttrain.doctor.finding import SEVERITIES, Finding
from posttrain.doctor.lengths import Tokenized
from posttrain.doctor.patterns import kinds
from posttrain.doctor.texts import Texts

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

SHOWN = 3


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens as text: `kind` is context, trained or special (a control token of either)."""

    text: str
    tokens: int
    trained: bool
    special: bool


@dataclass(frozen=True)
class Shown:
    """A sequence as the trainer has it, after truncation; `cut` tokens of it are lost."""

    row: int
    side: str
    pieces: list[Piece]
    cut: int


@dataclass
class Report:
    """Findings, most severe first, and the rows that are shown token by token."""

    findings: list[Finding] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    doubtful: list[dict[str, Any]] = field(default_factory=list)

    def count(self, severity: str) -> int:
        return sum(one.severity == severity for one in self.findings)


def examine(
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    held_out: Dataset | None,
    progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Every check on rows as the trainer gets them."""
    settings, report = run.doctor, Report()
    progress("Reading the text")
    own = texts.of(train, "train")
    other = texts.of(held_out, "held-out") if held_out is not None else None
    if settings.tokens:
        progress("Tokenizing")
        tokenized = tokenize(run, tokenizer, train, own)
        report.findings += lengths.check(run, own, tokenized, tokenizer.eos_token_id)
        report.shown = show(run, tokenizer, own, tokenized)
    report.findings.append(pairs.check_empty(own, settings))
    if own.paired:
        report.findings += [pairs.check_identical(own, settings), pairs.check_contradictory(own, settings)]
    if own.labels is not None:
        report.findings += [pairs.check_contradictory(own, settings), pairs.check_balance(own, run)]
    if own.paired or own.labels is not None:
        report.findings.append(pairs.check_length(own, settings, run.trainer.kind))
    if settings.duplicates:
        progress("Looking for duplicates")
        if own.answers:
            report.findings += duplicates.check_rows(own, settings)
        report.findings += duplicates.check_prompts(own, other, settings)
    if settings.language:
        progress("Reading languages and encodings")
        report.findings += [language.check_languages(own, settings), language.check_encoding(own, settings)]
    if settings.secrets:
        progress("Looking for secrets and personal data")
        report.findings += privacy.check([own, *([other] if other else [])], settings)
    if settings.noise and (own.paired or own.labels is not None):
        progress("Looking for label noise")
        doubt = noise.judge(own, settings)
        report.findings.append(noise.check(own, doubt, run))
        report.doubtful = noise.doubtful_rows(own, doubt) if doubt else []
    report.findings.sort(key=lambda one: -SEVERITIES.index(one.severity))
    return report


def tokenize(run: Run, tokenizer: PreTrainedTokenizerBase, rows: Dataset, own: Texts) -> Tokenized:
    characters = np.array([len(text) for text in own.whole()])
    sample, longest = sequences.choose(len(rows), run.doctor.sample, characters)
    return Tokenized(sequences.of(run, tokenizer, rows, sample), sequences.of(run, tokenizer, rows, longest), len(rows))


def show(run: Run, tokenizer: PreTrainedTokenizerBase, own: Texts, tokenized: Tokenized) -> list[Shown]:
    """The first rows without secrets or personal data, as the trainer sees them."""
    most, mode = lengths.limit(run)
    clean = [row for row in tokenized.sample[:50] if not kinds(f"{own.system[row[0].row]}\n{own.row(row[0].row)}")]
    shown = []
    for row in clean[:SHOWN]:
        for one in row:
            after = one.cut(most, mode)
            shown.append(Shown(one.row, one.side, _pieces(tokenizer, after), len(one.ids) - len(after.ids)))
    return shown


def _pieces(tokenizer: PreTrainedTokenizerBase, sequence: sequences.Sequence) -> list[Piece]:
    """Runs of tokens that are alike, decoded together: a character may be several tokens."""
    special = set(tokenizer.all_special_ids)
    pieces: list[Piece] = []
    start = 0
    kinds_of = [(trained, token in special) for token, trained in zip(sequence.ids, sequence.trained, strict=True)]
    for end in range(1, len(kinds_of) + 1):
        if end == len(kinds_of) or kinds_of[end] != kinds_of[start] or kinds_of[end][1]:
            text = tokenizer.decode(sequence.ids[start:end], clean_up_tokenization_spaces=False)
            pieces.append(Piece(_shortened(str(text)), end - start, *kinds_of[start]))
            start = end
    return pieces


def _shortened(text: str, most: int = 4000) -> str:
    """Both ends of what is too long to read."""
    return text if len(text) <= most else f"{text[: most // 2]} […] {text[-most // 2 :]}"
