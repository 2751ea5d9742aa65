"""Chat templates: those that there are, and whether one ends a turn with EOS."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.config.classes import package_folder
from posttrain.config.schema import ModelConfig
from posttrain.errors import PosttrainError
from posttrain.models.tokens import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def template_file(name: str) -> Path:
    """The file of `model.chat_template`: a path, or `trl:NAME`, one of those that TRL brings."""
    if not name.startswith("trl:"):
        return Path(os.path.expanduser(name))
    return templates()[name[len("trl:") :]]


def templates() -> dict[str, Path]:
    """The chat templates that TRL brings, by name; those it patches for training are left to it."""
    folder = package_folder("trl.chat_templates")
    files = sorted(folder.glob("*.jinja")) if folder else []
    return {file.stem: file for file in files if not file.stem.endswith("_training")}


def end_of_turn(tok: PreTrainedTokenizerBase) -> str | None:
    """The special token that ends an assistant turn of the chat template; `None` where none does."""
    if not tok.chat_template:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    special = [token for token in token_ids(tok, turns) if token in tok.added_tokens_decoder]
    return str(tok.decode(special[-1:])) if special else None


def check(tok: PreTrainedTokenizerBase, config: ModelConfig) -> None:
    """Raise `PosttrainError` unless a conversation can be rendered and its assistant turn ends with EOS.

    Generation stops at EOS; a model trained on turns that end otherwise never stops.
    """
    if not tok.chat_template:
        raise PosttrainError(
            f"model.path={config.path}: no chat template, and the data is conversational; "
            "set model.chat_template=FILE.jinja, or take an instruct model"
        )
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    whole, prompt = token_ids(tok, turns), token_ids(tok, turns[:1])
    if tok.eos_token_id not in whole[len(prompt) :]:
        end = tok.decode([i for i in whole if i in tok.added_tokens_decoder][-1:]) or repr(tok.decode(whole[-3:]))
        raise PosttrainError(
            f"model.path={config.path}: the chat template ends an assistant turn with {end}, and EOS is "
            f"{tok.eos_token}: the model would not learn to stop; set model.eos_token={end}, or another template"
        )
