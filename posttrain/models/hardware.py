"""The device, dtype and attention implementation of a run."""

from dataclasses import dataclass
from typing import Any

from posttrain.config.schema import ModelConfig, PeftConfig


@dataclass(frozen=True)
class Precision:
    """The number types of a run: weights are loaded as `dtype`; `bf16` and `fp16` switch mixed precision on."""

    device: str
    dtype: str
    bf16: bool
    fp16: bool
    attn_implementation: str

    def __str__(self) -> str:
        mixed = "bf16" if self.bf16 else "fp16" if self.fp16 else "none"
        return f"{self.device}, weights {self.dtype}, mixed precision {mixed}, attention {self.attn_implementation}"


def precision(model: ModelConfig, peft: PeftConfig, args: dict[str, Any], known: str | None = None) -> Precision:
    """The fastest types of this machine; an explicit `bf16`, `fp16`, `use_cpu`, dtype or attention in the config wins.

    `known` is the type of the weights that a continued adapter was trained on; it is kept.
    Full fine-tuning keeps float32 weights, since steps of some 1e-6 vanish in bfloat16; frozen weights under an
    adapter are loaded in the half type.
    """
    import torch
    from transformers.utils import is_flash_attn_2_available

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
        fast = cuda and half != "float32" and is_flash_attn_2_available()
        attention = "flash_attention_2" if fast else "sdpa"
    name = torch.cuda.get_device_name() if cuda else "CPU"
    return Precision(name, dtype, bool(bf16), bool(fp16), attention)


def init_kwargs(model: ModelConfig, chosen: Precision, revision: str | None) -> dict[str, Any]:
    """`model_init_kwargs` for TRL: what `from_pretrained` gets."""
    kwargs = {"dtype": chosen.dtype, "attn_implementation": chosen.attn_implementation, **model.kwargs}
    # Weights in pickle files can run code when they are loaded.
    kwargs["use_safetensors"] = True
    if revision:
        kwargs["revision"] = revision
    return kwargs
