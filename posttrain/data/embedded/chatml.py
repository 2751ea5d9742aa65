"""ChatML with SmolLM2's special tokens: the template and tokenizer files of both embedded models."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# ChatML with SmolLM2's default system message: byte for byte the template that SmolLM2-Instruct was trained with.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Padding is not the end-of-turn token: a collator that masks padding would mask the very token to be learnt.
PAD, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def save_tokenizer(tokenizer: "Tokenizer", folder: Path, max_length: int) -> None:
    """Write `tokenizer` to `folder` as Transformers loads it, with ChatML and the special tokens."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=PAD,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHATML,
    ).save_pretrained(folder)
