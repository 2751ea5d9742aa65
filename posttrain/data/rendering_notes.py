"""The notes of a plan on what a chat template leaves out of rows."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from posttrain.config import trainers
from posttrain.data.loss_mask import training_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def describe(
    counts: Counter[str], rows: int, tokenizer: PreTrainedTokenizerBase, kind: str, may_mask: bool, hides_tools: bool
) -> dict[str, str]:
    """The notes for the trainer `kind`; `counts` says how many of the `rows` rows lose what.

    `may_mask`: `assistant_only_loss` would give it TRL's training template, if there is one. `hides_tools`: it shows
    the policy no tools.
    """
    trainer, found = trainers.of(kind), {}
    if count := counts["without_thoughts"]:
        option = (
            "trainer.args.assistant_only_loss=true trains with TRL's template, which keeps it"
            if may_mask and training_template(tokenizer, True)
            else "model.chat_template=FILE.jinja sets one that keeps it"
        )
        found["thinking"] = (
            f"{count} of {rows} rows have reasoning in earlier turns, which the chat template leaves out, "
            f"so it is not learnt; {option}"
        )
    if count := counts["others_learnt"]:
        found["answers"] = (
            f"{count} of {rows} rows have turns of others in what answers the prompt, which are learnt with it"
            + ("; rows of messages learn the assistant's alone" * (trainer.reads == "text"))
        )
    if count := counts["reopened"]:
        found["turns"] = (
            f"{count} of {rows} rows have two assistant turns in a row, and the chat template ends "
            "the first before it opens the second; join those that are one answer"
        )
    if count := counts["without_tools"]:
        found["tools"] = f"{count} of {rows} rows have tools, which "
        found["tools"] += (
            f"{kind} does not show the policy"
            if hides_tools
            else "the chat template does not show; model.chat_template=FILE.jinja sets one that does"
        )
        if hides_tools and "tools" in trainer.parameters:
            found["tools"] += ": those are the functions of trainer.tools"
    if count := counts["without_options"]:
        found["template"] = (
            f"{count} of {rows} rows have chat_template_kwargs, which {kind} does not read: "
            "set trainer.args.chat_template_kwargs"
        )
    return found
