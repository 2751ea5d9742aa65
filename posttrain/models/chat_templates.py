"""Chat templates: those of TRL, and the token that ends a turn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.config.classes import package_folder
from posttrain.models.tokens import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def template_file(name: str) -> Path:
    """The file of `model.chat_template`: a path, or `trl:NAME`, one of those that TRL brings."""
    if not name.startswith("trl:"):
        return Path(os.path.expanduser(name))
    return templates()[name[len("trl:") :]]


def templates() -> dict[str, Path]:
    """The chat templates in TRL, by name, without its variants for training."""
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


def unknown_template(value: str) -> list[str]:
    """Errors for `model.chat_template=trl:NAME` where TRL has no such template."""
    known = templates()
    if value[len("trl:") :] in known:
        return []
    from posttrain.config import hints

    return [f"model.chat_template={value}: TRL brings no such template; {hints.nearest(value[len('trl:') :], known)}"]
