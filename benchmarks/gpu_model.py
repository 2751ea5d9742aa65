"""The model, data and card that `gpu_measure.py` measures on."""

import gc
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from in_process import cuda
from sharing import Case, save_model, tokenizer

NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}


@dataclass(frozen=True)
class Size:
    """Shapes of the model and of what is measured on it: `llama` keyword arguments of LlamaConfig.

    `lengths`: tokens of a row, or of a prompt, by kind; `answer`: of a sampled answer; `rollout`: answers that are
    sampled at a time; `most`: the largest microbatch that is tried; `shared`: (prompt, answer) tokens of the pairs
    that share a prompt.
    """

    llama: dict[str, Any]
    lengths: dict[str, int]
    answer: int
    rollout: int
    steps: int
    most: int
    shared: dict[str, Case]
    small_llama: dict[str, Any]
    overhead_hidden: int
    extra: tuple[str, ...] = ()


REAL = Size(
    llama={
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
    lengths={"sft": 2048, "dpo": 1024, "reward": 2048, "grpo": 256, "ppo": 512},
    answer=256,  # half of what the recipes allow: one token of an 8B model in NF4 takes 0.18 s, whatever the batch
    rollout=32,
    steps=3,
    most=64,
    shared={
        "dpo": Case("dpo", 16, (400, 600), (60, 120)),
        "dpo_equal": Case("dpo", 8, (512, 512), (512, 512)),
        "reward": Case("reward", 16, (400, 600), (60, 120)),
        "grpo": Case("grpo", 4, (100, 100), (64, 64)),
    },
    # Llama 3.2 1B
    small_llama={
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    overhead_hidden=1024,
)
REHEARSAL = Size(
    llama={
        "vocab_size": 2048,  # the words of benchmarks/sharing.py
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    },
    lengths={"sft": 64, "dpo": 64, "reward": 64, "grpo": 16, "ppo": 16},
    answer=4,
    rollout=8,
    steps=2,
    most=4,
    shared={
        "dpo": Case("dpo", 2, (12, 16), (2, 4)),
        "dpo_equal": Case("dpo", 2, (8, 8), (8, 8)),
        "reward": Case("reward", 2, (12, 16), (2, 4)),
        "grpo": Case("grpo", 1, (8, 8), (4, 4)),
    },
    small_llama={
        "vocab_size": 2048,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    overhead_hidden=32,
    # The optimizers of the recipes page their state to a GPU.
    extra=("trainer.args.optim=adamw_torch", "trainer.args.bf16=true"),
)


@dataclass(frozen=True)
class Place:
    """Where a worker works: `folder` keeps the model, the reward run and the demo's run for later measurements."""

    folder: Path
    size: Size

    @property
    def rehearsal(self) -> bool:
        return self.size is REHEARSAL


# The card


def start_counting(cap: int | None) -> None:
    """Free what earlier measurements left, limit this process to `cap` bytes, and count the peak from here."""
    if not cuda():
        return
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (cap or total) / total))
    torch.cuda.reset_peak_memory_stats()


# Model and data


def llama(place: Place) -> Path:
    """A folder with a Llama of random weights in NF4, drawn once for each shape of matrix, and a byte tokenizer."""
    folder = place.folder / "llama"
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    from posttrain.data.embedded.tiny import tiny_model

    config = LlamaConfig(
        **place.size.llama,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    torch.manual_seed(0)
    drawn: dict[Any, torch.Tensor] = {}
    state = {}
    for name, shape in shapes.items():
        # Quantizing makes a tensor of its own of each; all others would be saved as one, or not at all.
        key = shape if "proj" in name else name
        if key not in drawn:
            one = torch.ones(shape) if "norm" in name else torch.empty(shape).normal_(0, 0.02)
            drawn[key] = one.to(torch.bfloat16)
        state[name] = drawn[key]
    model = LlamaForCausalLM.from_pretrained(
        None,
        config=config,
        state_dict=state,
        quantization_config=BitsAndBytesConfig(**NF4),
        dtype=torch.bfloat16,
        device_map={"": 0} if cuda() else None,
    )
    half = folder.with_name("llama.half")
    model.save_pretrained(half)
    AutoTokenizer.from_pretrained(tiny_model()).save_pretrained(half)
    half.rename(folder)
    return folder


def small_llama(place: Place) -> Path:
    """A folder with the smaller Llama of random weights, in bfloat16 on a GPU."""
    folder = place.folder / "small-llama"
    if not (folder / "config.json").is_file():
        half = folder.with_name("small-llama.half")
        save_model(str(half), place.size.small_llama, tokenizer())
        half.rename(folder)
    return folder


def text(rng: random.Random, length: int) -> str:
    """As many letters, each a token of the byte tokenizer."""
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=length))


def pairs(place: Place, prompt: int, answer: int, rows: int = 256) -> Path:
    """Preference pairs of one length."""
    rng = random.Random(0)
    path = place.folder / f"pairs-{prompt}-{answer}.jsonl"
    with path.open("w") as file:
        for _ in range(rows):
            row = {"prompt": text(rng, prompt), "chosen": text(rng, answer), "rejected": text(rng, answer)}
            file.write(json.dumps(row) + "\n")
    return path
