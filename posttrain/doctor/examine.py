"""All checks that apply to a run's data, in reading order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.config.schema import DoctorConfig, Run
from posttrain.doctor import duplicates, language, lengths, noise, pairs, privacy, prompts, sequences, texts
from posttrain.doctor.finding import SEVERITIES, Example, Finding, excerpt, finding, plural, severity
from posttrain.doctor.lengths import Tokenized
from posttrain.doctor.patterns import kinds
from posttrain.doctor.texts import Texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.data.loading import Data

ROWS_SHOWN = 3


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens as text; `trained` ones carry the loss, `special` ones are control tokens."""

    text: str
    tokens: int
    trained: bool
    special: bool


@dataclass(frozen=True)
class Shown:
    """A sequence as the trainer gets it, after truncation, which removes `cut` tokens."""

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
    data: Data,
    progress: Callable[[str], None] = lambda what: None,
    notes: Mapping[str, str] | None = None,
) -> Report:
    """Run every check on the trainer's rows; `notes` are the plan's notes on the chat template."""
    train, held_out = data.train, data.eval
    settings, report = run.doctor, Report()
    progress("Reading the text")
    own = texts.of(train, "train")
    other = texts.of(held_out, "held-out") if held_out is not None else None
    if settings.tokens:
        progress("Tokenizing")
        tokenized = tokenize(run, tokenizer, data, own)
        report.findings += lengths.check(run, own, tokenized, tokenizer.eos_token_id)
        report.findings.append(prompts.check_bos(tokenized, tokenizer.bos_token_id, own, settings))
        report.shown = show(run, tokenizer, own, tokenized)
    report.findings += [*_skipped(data, settings), pairs.check_empty(own, settings)]
    report.findings += [prompts.check_repeated(own, settings), prompts.check_template(notes or {}, len(own))]
    if any(isinstance(train[0].get(name), list) for name in ("prompt", "messages", *own.answers)):
        report.findings.append(prompts.check_control_tokens(own, tokenizer.all_special_tokens, settings))
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
        doubt = noise.estimate(own, settings)
        report.findings.append(noise.check(own, doubt, run))
        report.doubtful = noise.doubtful_rows(own, doubt) if doubt else []
    report.findings.sort(key=lambda one: -SEVERITIES.index(one.severity))
    return report


def _skipped(data: Data, settings: DoctorConfig) -> list[Finding]:
    """The rows that `data.on_error=skip` left out; examples name the file and the line or row in it."""
    count = sum(one.count for one in data.skipped)
    if not count:
        return []
    entries = [entry for one in data.skipped for entry in one.first(settings.examples)][: settings.examples]
    rows = len(data.train) + (len(data.eval) if data.eval is not None else 0)
    return [
        finding(
            "skipped",
            severity(count, count + rows, settings),
            f"{plural(count, 'row')} of the source left out by data.on_error=skip",
            {"rows": count, "share": count / (count + rows)},
            [Example(file, number, excerpt(says)) for file, number, says in entries],
            "What they say is not learnt, and an exporter that breaks some rows may have bent others.",
            "Fix the rows, or the export that they come from.",
        )
    ]


def tokenize(run: Run, tokenizer: PreTrainedTokenizerBase, data: Data, own: Texts) -> Tokenized:
    characters = np.array([len(text) for text in own.whole()])
    sample, longest = sequences.choose(len(own), run.doctor.sample, characters)
    first, others = (sequences.of(run, tokenizer, data.train, part) for part in (sample, longest))
    return Tokenized(first, others, len(own))


def show(run: Run, tokenizer: PreTrainedTokenizerBase, own: Texts, tokenized: Tokenized) -> list[Shown]:
    """The first rows without secrets or personal data, as the trainer sees them."""
    most, mode = lengths.limit(run)
    clean = [row for row in tokenized.sample[:50] if not kinds(own.everything(row[0].row))]
    shown = []
    for row in clean[:ROWS_SHOWN]:
        for one in row:
            after = one.cut(most, mode)
            shown.append(Shown(one.row, one.side, _pieces(tokenizer, after), len(one.ids) - len(after.ids)))
    return shown


def _pieces(tokenizer: PreTrainedTokenizerBase, sequence: sequences.Sequence) -> list[Piece]:
    """Runs of tokens of the same kind, decoded together, since several tokens may make one character."""
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
    """A text, or the two ends of a text that is too long to read."""
    return text if len(text) <= most else f"{text[: most // 2]} […] {text[-most // 2 :]}"
