"""Chat templates: those of TRL, and the token that ends a turn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.classes import package_folder
from posttrain.config.schema import ModelConfig
from posttrain.errors import PosttrainError, first_line
from posttrain.models.tokens import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def template_file(name: str) -> Path:
    """The file of `model.chat_template`: a path, or `trl:NAME`, one of those that TRL brings."""
    if not name.startswith("trl:"):
        return Path(os.path.expanduser(name))
    return templates()[name[len("trl:") :]]


def template_text(name: str) -> str:
    """The template of `model.chat_template`; raises `PosttrainError` for a file that holds none."""
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    start = f"model.chat_template={name}:"
    try:
        text = template_file(name).read_text(encoding="utf-8-sig")
        _compile_jinja_template(text)
    except UnicodeDecodeError as error:
        raise PosttrainError(f"{start} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise PosttrainError(f"{start} {error.strerror}; give a Jinja file") from error
    except TemplateSyntaxError as error:
        raise PosttrainError(f"{start} line {error.lineno}: {first_line(error)}; correct the template") from error
    if not text.strip():
        raise PosttrainError(f"{start} is empty; give a Jinja file")
    return text


def templates() -> dict[str, Path]:
    """The chat templates in TRL, by name, without its variants for training."""
    folder = package_folder("trl.chat_templates")
    files = sorted(folder.glob("*.jinja")) if folder else []
    return {file.stem: file for file in files if not file.stem.endswith("_training")}


def end_of_turn(tok: PreTrainedTokenizerBase) -> str | None:
    """The special token that ends an assistant turn of the chat template; `None` where none does."""
    from jinja2 import TemplateError

    if not tok.chat_template:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        special = [token for token in token_ids(tok, turns) if token in tok.added_tokens_decoder]
    except TemplateError:
        return None
    return str(tok.decode(special[-1:])) if special else None


def no_padding(tok: PreTrainedTokenizerBase, path: str) -> PosttrainError:
    """The error for a tokenizer with EOS as its only token for padding."""
    if (ending := end_of_turn(tok)) not in (None, tok.eos_token):
        return PosttrainError(
            f"model.path={path}: the chat template ends an assistant turn with {ending}, and EOS is "
            f"{tok.eos_token}, the only token for padding as well; set model.eos_token={ending}"
        )
    return PosttrainError(
        f"model.path={path}: no padding token other than EOS; set model.pad_token to one it never emits"
    )


def tokenized_row(tok: PreTrainedTokenizerBase, row: dict[str, Any], config: ModelConfig) -> tuple[list[int], ...]:
    """The ids of the conversation in `row` (with an answer, if it has none), and of the turns before its answer."""
    from jinja2 import TemplateError

    turns = row.get("messages") or [*row.get("prompt", ()), *(row.get("chosen") or row.get("completion") or ())]
    if turns[-1]["role"] != "assistant":
        turns = [*turns, {"role": "assistant", "content": "b"}]
    try:
        return token_ids(tok, turns, row=row), token_ids(tok, turns[:-1], row=row)
    except TemplateError as error:
        key, value = ("chat_template", config.chat_template) if config.chat_template else ("path", config.path)
        raise PosttrainError(
            f"model.{key}={value}: the chat template cannot render the first row: {first_line(error)}; change the "
            "rows, or take another template"
        ) from error


def unknown_template(value: str) -> list[str]:
    """Errors for `model.chat_template=trl:NAME` where TRL has no such template."""
    known = templates()
    if value[len("trl:") :] in known:
        return []
    from posttrain.config import hints

    return [f"model.chat_template={value}: TRL brings no such template; {hints.nearest(value[len('trl:') :], known)}"]
