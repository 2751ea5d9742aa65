"""Rows as the model's chat template writes them: what it refuses, and what it leaves out without a word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.data import loss_mask
from posttrain.data.conversation import REASONING_KEYS
from posttrain.data.files import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_THINK_BLOCK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
ANSWER_COLUMNS = ("completion", "chosen", "rejected")


class Rendering:
    """Looks at each row as trainer `kind` with `args` will render it; `posttrain.data.reading` calls `check`.

    It goes with a run's tokenizer, whose template may have a place for reasoning, or none: then the reasoning stands in
    the content, as a <think> block.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kind: str, args: Mapping[str, Any]):
        self.tokenizer, self.kind = tokenizer, kind
        only_assistant = args.get("assistant_only_loss")
        self.template: str | None = None
        if trainers.of(kind).reads == "text" and tokenizer.chat_template:
            self.template = loss_mask.training_template(tokenizer, only_assistant)
        written = self.template or tokenizer.chat_template or ""
        self.reasoning = next((name for name in REASONING_KEYS if name in str(written)), "inline")
        self.every_turn = only_assistant is False
        self.bos = _own_bos(tokenizer)
        self.rows = self.inline = self.without_thoughts = self.without_tools = 0

    def check(self, row: Mapping[str, Any]) -> None:
        """Raise `RowError` for a row that the template refuses, or of which it leaves calls of tools out."""
        self.rows += 1
        if not self.tokenizer.chat_template or not any(isinstance(row.get(c), list) for c in ("messages", "prompt")):
            return
        render = loss_mask.renderer(self.tokenizer, row.get("tools"), row.get("chat_template_kwargs"), self.template)
        if "messages" in row and trainers.of(self.kind).reads == "text":
            whole = (
                loss_mask.assistant_spans(row["messages"], render)[0]
                if not self.every_turn
                else render(row["messages"], False)
            )
            self._check_content(row, "messages", row["messages"], whole, render)
            return
        if "messages" in row:
            turns = list(row["messages"])
            while turns and turns[-1]["role"] == "assistant":
                turns.pop()
            render(turns, True)
            return
        self._check_field("prompt", lambda: render(row["prompt"], True))
        if trainers.of(self.kind).samples_completions:
            return
        several = [(f"completions[{n}]", said) for n, said in enumerate(row.get("completions") or [])]
        for name, said in [(name, row[name]) for name in ANSWER_COLUMNS if name in row] + several:
            whole = self._check_field(name, lambda said=said: render(row["prompt"] + said, False))
            self._check_content(row, name, row["prompt"] + said, whole, render)

    def _check_field(self, field: str, render: Any) -> str:
        try:
            return str(render())
        except RowError as row_error:
            raise RowError(field, row_error.reason) from None

    def _check_content(
        self, row: Mapping[str, Any], field: str, turns: loss_mask.Messages, whole: str, render: loss_mask.Render
    ) -> None:
        """What should be in the text, and is not: calls, tools, and reasoning that is to be learnt."""
        missing, first = False, 0 if field == "messages" else len(row["prompt"])
        for number, turn in enumerate(turns):
            without = [*turns[:number], _mute(turn), *turns[number + 1 :]]
            if turn.get("tool_calls") and self._same(whole, render, without):
                where = f"{field}[{number - first}]" if number >= first else f"prompt[{number}]"
                raise RowError(
                    f"{where}.tool_calls",
                    "the chat template leaves calls of tools out; set model.chat_template=FILE.jinja with one that "
                    "writes them, or take a model that knows tools",
                )
            if turn["role"] == "assistant" and number >= first:
                given = turn.get(self.reasoning) or next(iter(_THINK_BLOCK.findall(turn["content"])), "")
                missing = missing or given.strip() not in whole
        self.without_thoughts += missing
        if row.get("tools"):
            bare = loss_mask.renderer(self.tokenizer, None, row.get("chat_template_kwargs"), self.template)
            self.without_tools += self._same(whole, bare, turns)

    @staticmethod
    def _same(whole: str, render: loss_mask.Render, turns: loss_mask.Messages) -> bool:
        try:
            return render(turns, False) == whole
        except RowError:
            return False

    def without_bos(self, text: str) -> str:
        """Text that was rendered before, without the BOS that the tokenizer adds anew."""
        return text[len(self.bos) :] if self.bos and text.startswith(self.bos) else text

    def notes(self) -> dict[str, str]:
        """What a plan says of the rows that were read."""
        found = {}
        if self.without_thoughts:
            keeps = trainers.of(self.kind).reads == "text" and not self.template and _can_keep(self.tokenizer)
            option = (
                "trainer.args.assistant_only_loss=true trains with TRL's template, which keeps it"
                if keeps
                else "model.chat_template=FILE.jinja sets one that keeps it"
            )
            found["thinking"] = (
                f"{self.without_thoughts} of {self.rows} rows have reasoning in earlier turns, which the chat template "
                f"leaves out, so it is not learnt; {option}"
            )
        if self.without_tools:
            found["tools"] = (
                f"{self.without_tools} of {self.rows} rows have tools, which the chat template does not show; "
                "model.chat_template=FILE.jinja sets one that does"
            )
        return found


def _mute(turn: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in turn.items() if key != "tool_calls"}


def _own_bos(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The BOS that the tokenizer puts before every text, if it does."""
    first = tokenizer("a")["input_ids"][:1]
    return str(tokenizer.bos_token) if tokenizer.bos_token and first == [tokenizer.bos_token_id] else None


def _can_keep(tokenizer: PreTrainedTokenizerBase) -> bool:
    return loss_mask.training_template(tokenizer, True) is not None
