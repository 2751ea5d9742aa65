"""The tokenizer that a run trains with, and whether its chat template ends a turn with EOS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain.config.schema import ModelConfig
from posttrain.errors import PosttrainError
from posttrain.runs.pretrained import pretrained_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that models reserve for padding or never emit, best first.
PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "[PAD]", "<|pad|>", "<unk>")


def load_tokenizer(config: ModelConfig, path: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer at `path` (default: the model's own) with the template and special tokens to train with.

    Padding gets its own token: if it were EOS, masking padding would mask EOS, and the model would never learn to stop.
    Raises `PosttrainError` where the tokenizer lacks a usable template or special token.
    """
    from transformers import AutoTokenizer

    path = path or pretrained_path(config.path)
    try:
        tok = AutoTokenizer.from_pretrained(
            path,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            clean_up_tokenization_spaces=False,
        )
    except Exception as error:
        from posttrain.hub import cannot_load

        raise PosttrainError(f"model.path={config.path}: {cannot_load(error, config.path)}") from error
    if config.chat_template:
        from posttrain.models.chat_templates import template_text

        tok.chat_template = template_text(config.chat_template)
    for key in ("eos_token", "pad_token"):
        if token := getattr(config, key):
            if token not in tok.get_vocab():
                raise PosttrainError(f"model.{key}={token}: not in the vocabulary of {config.path}")
            setattr(tok, key, token)
    if tok.eos_token is None:
        raise PosttrainError(f"model.path={config.path}: its tokenizer has no EOS token; set model.eos_token=TOKEN")
    if tok.pad_token is None or tok.pad_token_id == tok.eos_token_id:
        vocabulary = tok.get_vocab()
        free = [t for t in PAD_TOKENS if t in vocabulary and vocabulary[t] != tok.eos_token_id]
        if not free:
            from posttrain.models.chat_templates import no_padding

            raise no_padding(tok, config.path)
        tok.pad_token = free[0]
    return tok


def check_size(tok: PreTrainedTokenizerBase, config: ModelConfig, known: Any) -> None:
    """Raise `PosttrainError` for tokens that have no row in the model's embedding; `known` is the model's config."""
    rows = known.get_text_config().vocab_size
    beyond = {token: number for token, number in tok.get_vocab().items() if number >= rows}
    if beyond:
        shown = ", ".join(sorted(beyond, key=beyond.__getitem__)[:5])
        raise PosttrainError(
            f"model.path={config.path}: its tokenizer has {len(beyond)} tokens beyond the {rows} rows of the model's "
            f"embedding ({shown}); save the model after model.resize_token_embeddings(len(tokenizer)), or take the "
            "tokenizer that it was trained with"
        )


def check_template(tok: PreTrainedTokenizerBase, row: dict[str, Any], config: ModelConfig) -> None:
    """Raise `PosttrainError` if `row` is a conversation that cannot be rendered, or whose answer does not end with EOS.

    Generation stops at EOS; a model trained on turns that end otherwise never stops.
    """
    from jinja2 import TemplateError
    from trl.data_utils import is_conversational

    if not is_conversational(row):
        return
    if not tok.chat_template:
        raise PosttrainError(
            f"model.path={config.path}: no chat template, and the data is conversational; "
            "set model.chat_template=FILE.jinja, or take an instruct model"
        )
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        rendered: Any = [tok.apply_chat_template(some, tokenize=True, return_dict=True) for some in (turns, turns[:1])]
        whole, prompt = (one["input_ids"] for one in rendered)
    except TemplateError:  # a template may ask for a system turn
        from posttrain.models.chat_templates import tokenized_row

        whole, prompt = tokenized_row(tok, row, config)
    if tok.eos_token_id not in whole[len(prompt) :]:
        end = tok.decode([i for i in whole if i in tok.added_tokens_decoder][-1:]) or repr(tok.decode(whole[-3:]))
        raise PosttrainError(
            f"model.path={config.path}: the chat template ends an assistant turn with {end}, and EOS is "
            f"{tok.eos_token}: the model would not learn to stop; set model.eos_token={end}, or another template"
        )
