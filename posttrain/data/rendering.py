"""Checks of rows against the model's chat template: rows that it refuses, and content that it silently leaves out."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import TrainerConfig
from posttrain.data import chat_text
from posttrain.data.example import REASONING_KEYS
from posttrain.data.row import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = "set model.chat_template=FILE.jinja with one"
ANSWER_COLUMNS = ("completion", "chosen", "rejected")
_THINK_BLOCK = re.compile(r"<think>(.*?)</think>", re.DOTALL)


class Rendering:
    """Renders each row as the trainer of `config` will, and checks the text; `posttrain.data.reading` calls `check`.

    A template may have a place for reasoning. In others the reasoning is in the content, as a <think> block.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: TrainerConfig):
        self.tokenizer, self.kind, self.trainer = tokenizer, config.kind, trainers.of(config.kind)
        self.shows_row_tools = trainers.shows_row_tools(config)
        self.hides_tools = self.trainer.is_a("GKDTrainer") or (
            self.trainer.samples_completions and not self.shows_row_tools
        )
        only_assistant = config.args.get("assistant_only_loss")
        self.template: str | None = None
        if self.trainer.reads == "text" and tokenizer.chat_template:
            from posttrain.data.loss_mask import training_template

            self.template = training_template(tokenizer, only_assistant)
        written = self.template or tokenizer.chat_template or ""
        self.reasoning = next((name for name in REASONING_KEYS if name in str(written)), "inline")
        self.every_turn = only_assistant is False
        self.options = config.args.get("chat_template_kwargs")
        self.bos = _own_bos(tokenizer)
        self.rows = 0
        # The number of rows that lose something, by what they lose (see `rendering_notes`).
        self.found: Counter[str] = Counter()
        self.known: set[str] = set()

    def check(self, row: Mapping[str, Any]) -> None:
        """Raise `RowError` for a row that the template refuses, or from whose text it leaves something out."""
        self.rows += 1
        if not self.tokenizer.chat_template or not any(isinstance(row.get(c), list) for c in ("messages", "prompt")):
            return
        if self.trainer.samples_completions:
            self._check_prompt(row)
            return
        tools = None if self.hides_tools else row.get("tools")
        render = chat_text.renderer(self.tokenizer, tools, row.get("chat_template_kwargs"), self.template)
        answers = [(name, row[name]) for name in ANSWER_COLUMNS if name in row]
        answers += [(f"completions[{n}]", said) for n, said in enumerate(row.get("completions") or [])]
        self.found["reopened"] += any(map(_reopens, [row["prompt"] + said for _, said in answers] or [row["messages"]]))
        if "messages" in row:
            whole = render(row["messages"], False)
            self._check_content(row, "messages", row["messages"], whole, render)
            if not self.every_turn and self.trainer.reads == "text":
                from posttrain.data.loss_mask import assistant_spans

                assistant_spans(row["messages"], render, whole)
            return
        opened = self._check_field("prompt", lambda: render(row["prompt"], True))
        for name, said in answers:
            whole = self._check_field(name, lambda said=said: render(row["prompt"] + said, False))
            self._check_content(row, name, row["prompt"] + said, whole, render)
            if not self.trainer.scores:
                self._check_boundary(name, row["prompt"], opened, whole, render)
        if not self.trainer.scores:
            self.found["others_learnt"] += any(turn["role"] != "assistant" for _, said in answers for turn in said)

    @staticmethod
    def _check_boundary(
        field: str, prompt: chat_text.Messages, opened: str, whole: str, render: chat_text.Render
    ) -> None:
        """Raise `RowError` where a part of the prompt would be learnt: TRL's loss starts where the two texts differ."""
        if not whole.startswith(opened) and not whole.startswith(render(prompt, False).rstrip()):
            raise RowError(
                field,
                "the chat template writes the prompt otherwise once this follows it, so a part of the prompt would be "
                "learnt; end the prompt with the user's turn, or give the row as messages (sft)",
            )

    def _check_prompt(self, row: Mapping[str, Any]) -> None:
        """Check the prompt alone, as a trainer that samples renders it: with its own options, and tools if it can."""
        given, options = (row, row.get("chat_template_kwargs")) if self.shows_row_tools else ({}, None)
        options = {**(self.options or {}), **(options or {})}
        render = chat_text.renderer(self.tokenizer, given.get("tools"), options)
        turns = list(row["messages"] if "messages" in row else row["prompt"])
        while "messages" in row and turns and turns[-1]["role"] == "assistant":
            turns.pop()
        opened = self._check_field("prompt", lambda: render(turns, True))
        self._check_written("messages" if "messages" in row else "prompt", turns, 0, opened, render, True)
        if row.get("tools"):
            bare = chat_text.renderer(self.tokenizer, None, options)
            self.found["without_tools"] += self._same(opened, bare, turns, True)
        self.found["without_options"] += not self.shows_row_tools and bool(row.get("chat_template_kwargs"))

    def _check_field(self, field: str, render: Any) -> str:
        try:
            return str(render())
        except RowError as row_error:
            raise RowError(field, row_error.reason) from None

    def _check_content(
        self, row: Mapping[str, Any], field: str, turns: chat_text.Messages, whole: str, render: chat_text.Render
    ) -> None:
        """Check that the text has everything that it should: turns, calls, tools, and reasoning that is learnt."""
        missing, first = False, 0 if field == "messages" else len(row["prompt"])
        self._check_written(field, turns, first, whole, render)
        for number, turn in enumerate(turns[first:]):
            if turn["role"] == "assistant":
                pieces = _THINK_BLOCK.split(turn["content"])
                # Qwen3's keeps what stands before the first </think> and after the last.
                if len(pieces) > 3 and any(piece.strip() not in whole for piece in pieces):
                    raise RowError(
                        f"{field}[{number}]",
                        f"the chat template leaves out a part of it, which has several <think> blocks; {TEMPLATE} that "
                        "keeps them, or give the reasoning once",
                    )
                given = turn.get(self.reasoning) or next(iter(_THINK_BLOCK.findall(turn["content"])), "")
                missing = missing or given.strip() not in whole
        self.found["without_thoughts"] += missing
        if row.get("tools"):
            bare = chat_text.renderer(self.tokenizer, None, row.get("chat_template_kwargs"), self.template)
            self.found["without_tools"] += self._same(whole, bare, turns)

    def _check_written(
        self,
        field: str,
        turns: chat_text.Messages,
        first: int,
        whole: str,
        render: chat_text.Render,
        opened: bool = False,
    ) -> None:
        """Raise `RowError` for a turn, or its calls, that can be removed without a change of the text.

        Content that is found in the text counts as written, once the template is known to write turns of its role.
        """
        for number, turn in enumerate(turns):
            where = f"{field}[{number - first}]" if number >= first else f"prompt[{number}]"
            content, role = turn["content"].strip(), turn["role"]
            if content and (role not in self.known or content not in whole):
                if self._same(
                    whole,
                    render,
                    [*turns[:number], {**turn, "content": chat_text.PLACEHOLDER}, *turns[number + 1 :]],
                    opened,
                ):
                    raise RowError(where, f"the chat template leaves the {role}'s turn out; {TEMPLATE} that writes it")
                self.known.add(role)
            if turn.get("tool_calls"):
                mute = {key: value for key, value in turn.items() if key != "tool_calls"}
                if self._same(whole, render, [*turns[:number], mute, *turns[number + 1 :]], opened):
                    raise RowError(
                        f"{where}.tool_calls",
                        f"the chat template leaves calls of tools out; {TEMPLATE} that writes them, or take a model "
                        "that knows tools",
                    )

    @staticmethod
    def _same(whole: str, render: chat_text.Render, turns: chat_text.Messages, opened: bool = False) -> bool:
        try:
            return render(turns, opened) == whole
        except RowError:
            return False

    def without_bos(self, text: str) -> str:
        """Rendered text without the BOS that the tokenizer will add again."""
        return text[len(self.bos) :] if self.bos and text.startswith(self.bos) else text

    def notes(self) -> dict[str, str]:
        """The notes of the plan on the rows that were read."""
        if not self.found.total():
            return {}
        from posttrain.data import rendering_notes

        may_mask = self.trainer.reads == "text" and not self.template
        return rendering_notes.describe(self.found, self.rows, self.tokenizer, self.kind, may_mask, self.hides_tools)


def _own_bos(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The BOS that the tokenizer puts before every text, if it does."""
    first = tokenizer("a")["input_ids"][:1]
    return str(tokenizer.bos_token) if tokenizer.bos_token and first == [tokenizer.bos_token_id] else None


def _reopens(turns: chat_text.Messages) -> bool:
    return any(one["role"] == other["role"] == "assistant" for one, other in itertools.pairwise(turns))
