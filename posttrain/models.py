"""Model, tokenizer, precision and adapter of a run, as TRL's trainers take them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config import ModelConfig, PeftConfig, Run
from posttrain.errors import PosttrainError
from posttrain.rundir import model_folder
from posttrain.tokens import ids

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedTokenizerBase

# Tokens that models reserve for padding or never emit, best first.
PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "[PAD]", "<|pad|>", "<unk>")


def locate(path: str) -> str:
    """A hub id or folder that `from_pretrained` takes, from `model.path` or `reward.*.model`."""
    if path.startswith("embedded:"):
        from posttrain import assets

        embedded = {"embedded:smollm2": assets.smollm2, "embedded:tiny": assets.tiny}
        return str(embedded[path]())
    return model_folder(path)


@dataclass(frozen=True)
class Precision:
    """In which types a run computes: weights are loaded as `dtype`; `bf16`/`fp16` switch mixed precision on."""

    device: str
    dtype: str
    bf16: bool
    fp16: bool
    attn_implementation: str

    def __str__(self) -> str:
        mixed = "bf16" if self.bf16 else "fp16" if self.fp16 else "none"
        return f"{self.device}, weights {self.dtype}, mixed precision {mixed}, attention {self.attn_implementation}"


def precision(model: ModelConfig, peft: PeftConfig, args: dict[str, Any], known: str | None = None) -> Precision:
    """What this machine does best; an explicit `bf16`, `fp16`, `use_cpu`, dtype or attention in the config wins.

    `known` is the type of the weights that an adapter was trained on before, and goes on with.
    Full fine-tuning keeps float32 weights, since steps of some 1e-6 vanish in bfloat16; frozen weights under an
    adapter are loaded in the half type.
    """
    import torch

    cuda = torch.cuda.is_available() and not args.get("use_cpu")
    if cuda:
        bf16_capable = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without instructions for it, bfloat16 on a CPU is emulated, and slower than float32.
        bf16_capable = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    bf16, fp16 = args.get("bf16"), args.get("fp16")
    if bf16 is None:
        bf16 = bf16_capable and not fp16
    if fp16 is None:
        fp16 = cuda and not bf16_capable and not bf16
    half = "bfloat16" if bf16 else "float16" if fp16 else "float32"
    dtype = model.dtype if model.dtype != "auto" else known or (half if peft.method == "lora" else "float32")
    attention = model.attn_implementation
    if attention == "auto":
        attention = "flash_attention_2" if _flash_attention(cuda, half) else "sdpa"
    name = torch.cuda.get_device_name() if cuda else "CPU"
    return Precision(name, dtype, bool(bf16), bool(fp16), attention)


def _flash_attention(cuda: bool, half: str) -> bool:
    from transformers.utils import is_flash_attn_2_available

    return cuda and half != "float32" and is_flash_attn_2_available()


def init_kwargs(model: ModelConfig, chosen: Precision, revision: str | None) -> dict[str, Any]:
    """`model_init_kwargs` for TRL: what `from_pretrained` gets."""
    kwargs = {"dtype": chosen.dtype, "attn_implementation": chosen.attn_implementation, **model.kwargs}
    # Weights in pickle files can run code when they are loaded.
    kwargs["use_safetensors"] = True
    if revision:
        kwargs["revision"] = revision
    return kwargs


def lora_config(peft: PeftConfig, kind: str, value: bool = False) -> LoraConfig | None:
    """The adapter; a reward model trains its `score` head beside it. `value`: that of PPO's value function."""
    if peft.method == "none":
        return None
    from peft import LoraConfig

    options = {**peft.lora, **(peft.value if value else {})}
    options.setdefault("task_type", "SEQ_CLS" if kind == "reward" else "CAUSAL_LM")
    return LoraConfig(**options)


def quantization_config(peft: PeftConfig) -> BitsAndBytesConfig | None:
    """4-bit or 8-bit loading by bitsandbytes, or `None`."""
    if not peft.quantization:
        return None
    import bitsandbytes.nn.modules as bnb
    from transformers import BitsAndBytesConfig

    # On CPUs with AVX512-BF16, a 4-bit layer repacks its weights at the first forward in eval mode, and from then on
    # passes no gradient back, silently. Layers ask this function when they are made.
    bnb.has_avx512bf16 = lambda: False
    return BitsAndBytesConfig(**peft.quantization)


def keep_trained_in_float32(model: Any) -> None:
    """Undo TRL's cast of a quantized model's adapter and head to bfloat16.

    AdamW's steps at usual learning rates are below what bfloat16's 8 bits can add to a weight, so most would be lost
    (TRL exempts DoRA's magnitudes for that reason, trl#7268). Mixed precision still computes in bfloat16.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def tokenizer(config: ModelConfig, path: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer at `path` (default: the model's own) with the template and special tokens to train with.

    Raises `PosttrainError` where it has none that would do.
    Padding gets a token of its own: where pad is EOS, masking one masks the other, and the model never learns to stop.
    """
    from transformers import AutoTokenizer

    path = path or locate(config.path)
    try:
        tok = AutoTokenizer.from_pretrained(
            path,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            clean_up_tokenization_spaces=False,
        )
    except Exception as error:
        raise PosttrainError(f"model.path={config.path}: {_explain(error, config.path)}") from error
    if config.chat_template:
        tok.chat_template = Path(os.path.expanduser(config.chat_template)).read_text(encoding="utf-8")
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
            raise PosttrainError(
                f"model.path={config.path}: no padding token other than EOS; set model.pad_token to one it never emits"
            )
        tok.pad_token = free[0]
    return tok


def _explain(error: Exception, path: str) -> str:
    from posttrain.hub import explain

    return explain(error, path, "model") or f"cannot be loaded: {str(error).splitlines()[0]}"


def check_template(tok: PreTrainedTokenizerBase, row: dict[str, Any], config: ModelConfig) -> None:
    """Raise `PosttrainError` unless a conversation can be rendered and its assistant turn ends with EOS.

    Generation stops at EOS; a model trained on turns that end otherwise never stops.
    """
    from trl.data_utils import is_conversational

    if not is_conversational(row):
        return
    if not tok.chat_template:
        raise PosttrainError(
            f"model.path={config.path}: no chat template, and the data is conversational; "
            "set model.chat_template=FILE.jinja, or take an instruct model"
        )
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    whole, prompt = ids(tok, turns), ids(tok, turns[:1])
    if tok.eos_token_id not in whole[len(prompt) :]:
        end = tok.decode([i for i in whole if i in tok.added_tokens_decoder][-1:]) or repr(tok.decode(whole[-3:]))
        raise PosttrainError(
            f"model.path={config.path}: the chat template ends an assistant turn with {end}, and EOS is "
            f"{tok.eos_token}: the model would not learn to stop; set model.eos_token={end}, or another template"
        )


def config(model: ModelConfig, path: str, revision: str | None) -> PretrainedConfig:
    """The model's own config, at `path` and `revision`; raises `PosttrainError` where there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=model.trust_remote_code)
    except Exception as error:
        raise PosttrainError(f"model.path={model.path}: {_explain(error, model.path)}") from error


def architecture(run: Run, path: str, revision: str | None) -> tuple[tuple[int, int], int | None]:
    """((all, trained) parameter counts, context length), from the config at `path` alone: no weights, no memory."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    known = config(run.model, path, revision)
    auto: Any = AutoModelForCausalLM
    if run.trainer.kind == "reward":
        auto, known.num_labels = AutoModelForSequenceClassification, 1
    with torch.device("meta"):
        model = auto.from_config(known, trust_remote_code=run.model.trust_remote_code)
        if adapter := lora_config(run.peft, run.trainer.kind):
            try:
                model = get_peft_model(model, adapter)
            except ValueError as error:
                raise PosttrainError(f"peft.lora: {error}") from error
    # Tied weights count once; a copy kept by PEFT for `modules_to_save` is the trained one.
    unique = {id(p): p for p in model.parameters()}.values()
    counts = sum(p.numel() for p in unique), sum(p.numel() for p in unique if p.requires_grad)
    return counts, getattr(known.get_text_config(), "max_position_embeddings", None)
