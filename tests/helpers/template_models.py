"""Tokenizers with the special tokens and the chat templates, as TRL ships them, of known families of models."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

NEWLINE = "Ċ"
# Special tokens, BOS, EOS, padding, TRL's template, whether BOS is put before every text, whether newlines merge.
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
QWEN += ["<tool_response>", "</tool_response>"]
LLAMA = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
LLAMA += ["<|finetune_right_pad_id|>", "<|eom_id|>", "<|python_tag|>"]
GEMMA = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
MISTRAL = """{{ bos_token }}{% for m in messages %}{% if (m['role']=='user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if m['role']=='user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}\
{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"""
FAMILIES: dict[str, tuple[list[str], str | None, str, str | None, str, bool, bool]] = {
    "qwen3": (QWEN, None, "<|im_end|>", "<|endoftext|>", "qwen3", False, True),
    "qwen25": (QWEN, None, "<|im_end|>", "<|endoftext|>", "qwen2_5", False, True),
    "qwenbase": (QWEN, None, "<|endoftext|>", "<|endoftext|>", "qwen2_5", False, True),
    "llama3": (LLAMA, "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>", "llama3", True, True),
    "llama31": (LLAMA, "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>", "llama3_1", True, True),
    "gemma": (GEMMA, "<bos>", "<end_of_turn>", "<pad>", "gemma", True, True),
    "mistral": (["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>", "<unk>", MISTRAL, True, False),
}


@cache
def tokenizer(name: str) -> Any:
    """The tokenizer of `name` in `FAMILIES`: a byte a token, but for special ones and two newlines that merge."""
    import trl
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special, bos, eos, pad, template, add_bos, merge = FAMILIES[name]
    pairs = [(NEWLINE, NEWLINE)] if merge else []
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in pairs)]
    vocabulary = {token: number for number, token in enumerate(names)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    if add_bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[str(bos)])]
        )
    found = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    folder = Path(str(trl.__file__)).parent / "chat_templates"
    found.chat_template = template if "{" in template else (folder / f"{template}.jinja").read_text()
    return found


def copy(name: str, template: str) -> Any:
    """Another tokenizer of `name`, with a chat template of its own."""
    found = deepcopy(tokenizer(name))
    found.chat_template = template
    return found
