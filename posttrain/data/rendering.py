"""How the chat template of a run renders its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import TrainerConfig
from posttrain.data.example import REASONING_KEYS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.data.rendering_checks import RenderingChecks


class Rendering:
    """Renders each row as the trainer of `config` will, and checks the text; `posttrain.data.reading` calls `check`.

    A template may have a place for reasoning. In others the reasoning is in the content, as a <think> block.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: TrainerConfig):
        self.tokenizer, self.config = tokenizer, config
        self.template: str | None = None
        if trainers.of(config.kind).reads == "text" and tokenizer.chat_template:
            from posttrain.data.loss_mask import training_template

            self.template = training_template(tokenizer, config.args.get("assistant_only_loss"))
        written = str(self.template or tokenizer.chat_template or "")
        self.reasoning = next((name for name in REASONING_KEYS if name in written), "inline")
        # The BOS that the tokenizer puts before every text, if it does.
        first = tokenizer("a")["input_ids"][:1]
        self.bos = str(tokenizer.bos_token) if tokenizer.bos_token and first == [tokenizer.bos_token_id] else ""
        self.rows = 0
        self.checks: RenderingChecks | None = None

    def check(self, row: Mapping[str, Any]) -> None:
        """Raise `RowError` for a conversation that the template refuses, or of which it leaves something out."""
        self.rows += 1
        if self.tokenizer.chat_template and any(isinstance(row.get(name), list) for name in ("messages", "prompt")):
            if self.checks is None:
                from posttrain.data.rendering_checks import RenderingChecks

                self.checks = RenderingChecks(self.tokenizer, self.config, self.template, self.reasoning)
            self.checks.check(row)

    def without_bos(self, text: str) -> str:
        """Rendered text without the BOS that the tokenizer will add again."""
        return text.removeprefix(self.bos)

    def notes(self) -> dict[str, str]:
        """The notes of the plan on the rows that were read."""
        return self.checks.notes(self.rows) if self.checks else {}
