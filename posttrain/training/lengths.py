"""Lengths of rows in tokens, and what `max_length` does: for the first rows before training, then for all rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import Run
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

ANSWERS = ("completion", "chosen", "rejected")


@dataclass(frozen=True)
class Lengths:
    """Tokens of the first rows: of each row's longest sequence, and of its prompt."""

    sequence: list[int]
    prompt: list[int]

    def dropped(self, run: Run) -> int:
        """How many of these rows TRL's trainers drop because of their length."""
        limit, end = _limit(run)
        if not limit:
            return 0
        if trainers.of(run.trainer.kind).scores:
            return sum(length > limit for length in self.sequence)
        return 0 if end else sum(length >= limit for length in self.prompt)

    def cut(self, run: Run) -> int:
        """How many of these rows are cut: at the end of the answer, or with `keep_end` at the start of the prompt."""
        limit, _ = _limit(run)
        if not limit or trainers.of(run.trainer.kind).scores:
            return 0
        return sum(length > limit for length in self.sequence) - self.dropped(run)

    def describe(self, run: Run, rows: int | None) -> dict[str, str]:
        """The plan's lines on rows that `max_length` drops or cuts; `rows` is the number of rows."""
        limit, end = _limit(run)
        known = len(self.sequence)
        of = f"of {known} rows" if rows == known else f"of the first {known} rows"
        found = {}
        if count := self.dropped(run):
            why = "an answer is longer" if trainers.of(run.trainer.kind).scores else "the prompt alone fills it"
            found["dropped"] = f"{count} {of} by trainer.args.max_length={limit}: {why}"
        if count := self.cut(run):
            what = "the beginning of their prompt" if end else "the end of their answer"
            found["cut"] = f"{count} {of} lose {what} to trainer.args.max_length={limit}"
        if found and rows != known:
            found[next(reversed(found))] += "; the log has the numbers of all rows"
        return found

    @property
    def mean(self) -> float:
        return sum(self.sequence) / len(self.sequence)

    def longest(self, run: Run) -> tuple[int, int]:
        """Tokens of the longest row in training, and of its prompt."""
        args, kind = run.trainer.args, trainers.of(run.trainer.kind)
        row, prompt = max(zip(self.sequence, self.prompt, strict=True))
        if kind.samples_completions:
            return row + (args.get("max_completion_length") or kind.default("max_completion_length") or 512), row
        limit = args.get("max_length", kind.default("max_length"))
        if limit and (row > limit or args.get("packing")):
            row = limit
        return row, min(prompt, row)


def _limit(run: Run) -> tuple[int | None, bool]:
    """The length at which rows are cut or dropped (`None`: no limit), and whether their end is kept."""
    args, kind = run.trainer.args, trainers.of(run.trainer.kind)
    if kind.samples_completions or not kind.has("max_length") or args.get("packing") or args.get("padding_free"):
        return None, False
    return args.get("max_length", 1024), args.get("truncation_mode", "keep_start") != "keep_start"


def measure(run: Run, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> Lengths:
    """The lengths of rows as the trainer renders them, with tools; a pair counts with its longer answer.

    The prompt of a conversation ends at the first token that is learnt.
    """
    sequence, prompt = [], []
    only = run.trainer.args.get("assistant_only_loss")
    masked = trainers.of(run.trainer.kind).reads == "text" and "messages" in rows.column_names
    if masked:
        from posttrain.data import loss_mask

        template = loss_mask.training_template(tokenizer, only)
    for row in rows:
        if masked:
            more = (row.get("tools"), template, row.get("chat_template_kwargs"), only is False)
            labels = loss_mask.tokenize_conversation(tokenizer, row["messages"], *more)["labels"]
            sequence.append(len(labels))
            prompt.append(next((n for n, label in enumerate(labels) if label != -100), len(labels)))
            continue
        start = row.get("prompt", row.get("messages", row.get("text")))
        ends = [row[name] for name in ANSWERS if name in row]
        asked = _count(tokenizer, start, row)
        prompt.append(asked if ends else 0)
        sequence.append(max((_count(tokenizer, start + end, row) for end in ends), default=asked))
    return Lengths(sequence, prompt)


def _count(tokenizer: PreTrainedTokenizerBase, text: str | list[dict[str, Any]], row: Mapping[str, Any]) -> int:
    if isinstance(text, str):
        return len(tokenizer(text)["input_ids"])
    from posttrain.data import chat_text

    render = chat_text.renderer(tokenizer, row.get("tools"), row.get("chat_template_kwargs"))
    return len(tokenizer(render(text, False), add_special_tokens=False)["input_ids"])


def check_lengths(run: Run, lengths: Lengths, context: int | None) -> None:
    """Raise `PosttrainError` where `max_length` leaves nothing to learn, or rows do not fit the model's context."""
    args, errors = run.trainer.args, []
    kind = trainers.of(run.trainer.kind)
    if kind.samples_completions:
        longest = lengths.longest(run)[0]
        if context and longest > context:
            errors.append(
                f"trainer.args.max_completion_length: the longest prompt and its completion take {longest} tokens, "
                f"and the model's context is {context}"
            )
    elif limit := args.get("max_length", kind.default("max_length")):
        if context and limit > context:
            errors.append(f"trainer.args.max_length={limit}: the model's context is {context}; set it to that or less")
        measured = lengths.sequence if kind.scores else lengths.prompt
        if min(measured) >= limit:
            errors.append(
                f"trainer.args.max_length={limit}: every row is dropped, the shortest takes {min(measured)} tokens "
                f"{'' if kind.scores else 'before its completion '}(median {sorted(measured)[len(measured) // 2]}); "
                "raise max_length"
            )
    if context and run.probe.prompts and not kind.scores and run.probe.max_new_tokens > context:
        errors.append(
            f"probe.max_new_tokens={run.probe.max_new_tokens}: the model's context is {context}; set it to less"
        )
    if errors:
        raise PosttrainError("\n".join(errors))


def describe_prepared(name: str, given: Any, prepared: Any, args: Any) -> str | None:
    """The number of rows that `max_length` has dropped or cut, in words; `None` for none, or where unknown.

    `given` are the rows before TRL's preparation, `prepared` those after it, with their tokens.
    """
    limit = getattr(args, "max_length", None)
    if not limit or getattr(args, "packing", False) or not hasattr(given, "num_rows") or prepared is None:
        return None
    if name == "training" and not len(prepared):
        raise PosttrainError(f"trainer.args.max_length={limit}: it leaves nothing to learn in any row; raise it")
    whole, cut = _cut(given, prepared, limit)
    dropped = len(given) - len(prepared)
    if not (dropped or cut):
        return None
    # After TRL's cut, rows that had exactly this length cannot be distinguished from cut ones.
    most = "" if whole else "up to "
    return (
        f"{name}: of {len(given)} rows {dropped} dropped and {most}{cut} cut by max_length={limit}; "
        f"{len(prepared)} are used"
    )


def _cut(given: Any, prepared: Any, limit: int) -> tuple[bool, int]:
    """Whether the number of cut rows is exact, and the number."""
    names = prepared.column_names
    if "input_ids" in given.column_names:  # tokenized here, and cut by TRL
        return True, sum(length > limit for length in _token_counts(given, ["input_ids"])) - len(given) + len(prepared)
    if "prompt_ids" in names:  # cut by the collator
        answers = [name for name in ("chosen_ids", "rejected_ids", "completion_ids") if name in names]
        lengths = [_token_counts(prepared, ["prompt_ids", name]) for name in answers]
        return True, sum(max(row) > limit for row in zip(*lengths, strict=True))
    if "input_ids" in names:
        return False, sum(length >= limit for length in _token_counts(prepared, ["input_ids"]))
    return True, 0


def _token_counts(rows: Any, columns: list[str]) -> list[int]:
    """The number of tokens in `columns` together, per row."""
    import pyarrow.compute as pc

    counts: list[int] = []
    for batch in rows.select_columns(columns).with_format("arrow").iter(1000):
        parts = [pc.list_value_length(batch[name]).to_pylist() for name in columns]
        counts += [sum(row) for row in zip(*parts, strict=True)]
    return counts
