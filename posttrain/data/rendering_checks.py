"""Checks of conversations against a chat template: rows that it refuses, and content that it silently leaves out."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import TrainerConfig
from posttrain.data.chat_text import PLACEHOLDER, Messages, Render, renderer
from posttrain.data.row import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = "set model.chat_template=FILE.jinja with one"
ANSWER_COLUMNS = ("completion", "chosen", "rejected")
_THINK_BLOCK = re.compile(r"<think>(.*?)</think>", re.DOTALL)


class RenderingChecks:
    """Renders each conversation as the trainer of `config` will, and checks the text.

    `template` is the one that the trainer sets instead of the tokenizer's, `reasoning` the key of reasoning in it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: TrainerConfig, template: str | None, reasoning: str):
        self.tokenizer, self.template, self.reasoning = tokenizer, template, reasoning
        self.kind, self.trainer = config.kind, trainers.of(config.kind)
        self.shows_row_tools = trainers.shows_row_tools(config)
        self.hides_tools = self.trainer.is_a("GKDTrainer") or (
            self.trainer.samples_completions and not self.shows_row_tools
        )
        self.every_turn = config.args.get("assistant_only_loss") is False
        self.options = config.args.get("chat_template_kwargs") or {}
        # The number of rows that lose something, by what they lose (see `rendering_notes`).
        self.found: Counter[str] = Counter()
        # The roles whose turns the template is known to write.
        self.known: set[str] = set()

    def check(self, row: Mapping[str, Any]) -> None:
        """Raise `RowError` for a row that the template refuses, or from whose text it leaves something out."""
        if self.trainer.samples_completions:
            self._check_prompt(row)
            return
        tools = None if self.hides_tools else row.get("tools")
        render = renderer(self.tokenizer, tools, row.get("chat_template_kwargs"), self.template)
        if "messages" in row:
            turns = row["messages"]
            self.found["reopened"] += _reopens(turns)
            whole = render(turns, False)
            self._check_content(row, "messages", [], turns, whole, render)
            if not self.every_turn and self.trainer.reads == "text":
                from posttrain.data.loss_mask import assistant_spans

                assistant_spans(turns, render, whole)
            return
        prompt, answers = row["prompt"], [(name, row[name]) for name in ANSWER_COLUMNS if name in row]
        answers += [(f"completions[{n}]", said) for n, said in enumerate(row.get("completions") or [])]
        self.found["reopened"] += any(_reopens(prompt + said) for _, said in answers)
        opened = _rendered("prompt", render, prompt, True)
        for name, said in answers:
            whole = _rendered(name, render, prompt + said, False)
            self._check_content(row, name, prompt, said, whole, render)
            if self.trainer.scores or whole.startswith(opened):
                continue
            if not whole.startswith(render(prompt, False).rstrip()):  # TRL's loss starts where the two texts differ
                raise RowError(
                    name,
                    "the chat template writes the prompt otherwise once this follows it, so a part of the prompt would "
                    "be learnt; end the prompt with the user's turn, or give the row as messages (sft)",
                )
        if not self.trainer.scores:
            self.found["others_learnt"] += any(turn["role"] != "assistant" for _, said in answers for turn in said)

    def _check_prompt(self, row: Mapping[str, Any]) -> None:
        """Check the prompt alone, as a trainer that samples renders it: with its own options, and tools if it can."""
        given = row if self.shows_row_tools else {}
        options = {**self.options, **(given.get("chat_template_kwargs") or {})}
        render = renderer(self.tokenizer, given.get("tools"), options)
        field = "messages" if "messages" in row else "prompt"
        turns = list(row[field])
        while field == "messages" and turns and turns[-1]["role"] == "assistant":
            turns.pop()
        opened = _rendered("prompt", render, turns, True)
        self._check_written(field, [], turns, opened, render, True)
        if row.get("tools"):
            self.found["without_tools"] += _same(opened, renderer(self.tokenizer, None, options), turns, True)
        self.found["without_options"] += not self.shows_row_tools and bool(row.get("chat_template_kwargs"))

    def _check_content(
        self, row: Mapping[str, Any], field: str, prompt: Messages, turns: Messages, whole: str, render: Render
    ) -> None:
        """Check that the text has everything that it should: turns, calls, tools, and reasoning that is learnt."""
        self._check_written(field, prompt, turns, whole, render, False)
        missing = False
        for number, turn in enumerate(turns):
            if turn["role"] == "assistant":
                pieces = _THINK_BLOCK.split(turn["content"])
                # Qwen3's keeps what stands before the first </think> and after the last.
                if len(pieces) > 3 and any(piece.strip() not in whole for piece in pieces):
                    raise RowError(
                        f"{field}[{number}]",
                        f"the chat template leaves out a part of it, which has several <think> blocks; {TEMPLATE} that "
                        "keeps them, or give the reasoning once",
                    )
                given = turn.get(self.reasoning) or (pieces[1] if len(pieces) > 1 else "")
                missing = missing or given.strip() not in whole
        self.found["without_thoughts"] += missing
        if row.get("tools"):
            bare = renderer(self.tokenizer, None, row.get("chat_template_kwargs"), self.template)
            self.found["without_tools"] += _same(whole, bare, prompt + turns, False)

    def _check_written(
        self, field: str, prompt: Messages, turns: Messages, whole: str, render: Render, opened: bool
    ) -> None:
        """Raise `RowError` for a turn, or its calls, that can be removed without a change of the text.

        Content that is found in the text counts as written, once the template is known to write turns of its role.
        """
        every = prompt + turns
        places = [f"prompt[{n}]" for n in range(len(prompt))] + [f"{field}[{n}]" for n in range(len(turns))]

        def unchanged(number: int, turn: dict[str, Any]) -> bool:
            return _same(whole, render, [*every[:number], turn, *every[number + 1 :]], opened)

        for number, (turn, where) in enumerate(zip(every, places, strict=True)):
            content, role = turn["content"].strip(), turn["role"]
            if content and (role not in self.known or content not in whole):
                if unchanged(number, {**turn, "content": PLACEHOLDER}):
                    raise RowError(where, f"the chat template leaves the {role}'s turn out; {TEMPLATE} that writes it")
                self.known.add(role)
            mute = {key: value for key, value in turn.items() if key != "tool_calls"}
            if turn.get("tool_calls") and unchanged(number, mute):
                raise RowError(
                    f"{where}.tool_calls",
                    f"the chat template leaves calls of tools out; {TEMPLATE} that writes them, or take a model "
                    "that knows tools",
                )

    def notes(self, rows: int) -> dict[str, str]:
        """The notes of the plan on the `rows` that were read."""
        if not self.found.total():
            return {}
        from posttrain.data import rendering_notes

        may_mask = self.trainer.reads == "text" and not self.template
        return rendering_notes.describe(self.found, rows, self.tokenizer, self.kind, may_mask, self.hides_tools)


def _rendered(field: str, render: Render, turns: Messages, opened: bool) -> str:
    try:
        return render(turns, opened)
    except RowError as row_error:
        raise RowError(field, row_error.reason) from None


def _same(whole: str, render: Render, turns: Messages, opened: bool) -> bool:
    try:
        return render(turns, opened) == whole
    except RowError:
        return False


def _reopens(turns: Messages) -> bool:
    return any(one["role"] == other["role"] == "assistant" for one, other in itertools.pairwise(turns))
