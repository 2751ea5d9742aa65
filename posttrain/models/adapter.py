"""LoRA and quantization settings as PEFT and bitsandbytes take them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.options import as_typed
from posttrain.config.schema import PeftConfig
from posttrain.config.suggestions import did_you_mean
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import BitsAndBytesConfig


# Modules of a model that read images or sound; with text alone they are never trained.
SENSES = r"(.*\.)?(vision|visual|audio|multi_modal|embed_vision|embed_audio)\w*(\..*)?"


def lora_config(peft: PeftConfig, kind: str, value: bool = False, sees: bool = False) -> LoraConfig | None:
    """The policy's adapter, or with `value` that of PPO's value function; a reward model also trains its `score` head.

    A model that `sees` images gets the adapter on its text model only.
    """
    if peft.method == "none":
        return None
    from peft import LoraConfig

    options = {**peft.lora, **(peft.value if value else {})}
    options.setdefault("task_type", "SEQ_CLS" if trainers.of(kind).scores else "CAUSAL_LM")
    if sees and options.get("target_modules") == "all-linear":
        options.setdefault("exclude_modules", SENSES)
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
    return BitsAndBytesConfig(**as_typed("BitsAndBytesConfig", peft.quantization))


def keep_trained_in_float32(model: Any) -> None:
    """Undo TRL's cast of a quantized model's adapter and head to bfloat16.

    AdamW's steps at usual learning rates are below what bfloat16's 8 bits can add to a weight, so most would be lost
    (TRL exempts DoRA's magnitudes for that reason, trl#7268). Mixed precision still computes in bfloat16.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def changes_nothing(model: PeftModel) -> bool:
    """Whether the policy's adapter gives, bit for bit, the outputs of the reference: its frozen copy, or the base."""
    from peft import LoraConfig

    config = model.peft_config["default"]
    if not isinstance(config, LoraConfig) or config.use_dora:
        return False
    weights = dict(model.named_parameters())
    if "ref" in model.peft_config:
        own = {name: weight for name, weight in weights.items() if ".default" in name}
        return all(weight.equal(weights[name.replace(".default", ".ref")]) for name, weight in own.items())
    # With B = 0, B A x is 0. Some initialisations instead subtract B A from the base.
    ends = [weights[name] for name in weights if "lora_B.default" in name or "lora_embedding_B.default" in name]
    return bool(ends) and config.lora_bias is False and not any(weight.any() for weight in ends)


def add_without_weights(model: Any, peft: PeftConfig, kind: str, sees: bool = False, value: bool = False) -> Any:
    """`model`, on the meta device, with the adapter; raises `PosttrainError` for layers that the model lacks."""
    from peft import get_peft_model

    key, options = ("peft.value", peft.value) if value else ("peft.lora", peft.lora)
    if errors := list(_unmatched(key, options, model)):
        raise PosttrainError("\n".join(errors))
    try:
        config: Any = lora_config(peft, kind, value, sees)
        config.init_lora_weights = True  # some initialisations read the weights, and there are none here
        return get_peft_model(model, config)
    except Exception as error:  # PEFT raises whatever its layers meet: a KeyError, a re.error, an ImportError
        raise PosttrainError(f"{key}: {str(error) or type(error).__name__}") from error


def _unmatched(key: str, lora: dict[str, Any], model: Any) -> Iterator[str]:
    """Errors for modules, parameters, layers and tokens that the model lacks; PEFT ignores these if it finds others."""
    names, known = [name for name, _ in model.named_modules()], model.config.get_text_config()
    layers, tokens = getattr(known, "num_hidden_layers", None), known.vocab_size
    last = sorted({name.rpartition(".")[2] for name in names if name and not name.rpartition(".")[2].isdigit()})
    for option in ("target_modules", "modules_to_save", "exclude_modules"):
        wanted = lora.get(option)
        for module in wanted if isinstance(wanted, list) else []:
            if not any(name == module or name.endswith(f".{module}") for name in names):
                fix = f"{did_you_mean(module, last)} there are {', '.join(last)}".lstrip()
                yield f"{key}.{option}={module}: no such module; {fix}"
    for option in ("rank_pattern", "alpha_pattern"):
        for pattern in lora.get(option) or {}:
            if not _matches(str(pattern), names):
                yield f"{key}.{option}.{pattern}: matches no module; there are {', '.join(last)}"
    for parameter in lora.get("target_parameters") or []:
        if not any(name.endswith(str(parameter)) for name, _ in model.named_parameters()):
            yield f"{key}.target_parameters={parameter}: no parameter of the model ends so"
    indices = lora.get("trainable_token_indices") or []
    for index in indices if isinstance(indices, list) else [i for some in indices.values() for i in some]:
        if index >= tokens:
            yield f"{key}.trainable_token_indices={index}: the model has {tokens} tokens, from 0 on"
    if layers is None:
        return
    wanted = lora.get("layers_to_transform")
    for layer in [] if wanted is None else wanted if isinstance(wanted, list) else [wanted]:
        if layer >= layers:
            yield f"{key}.layers_to_transform={layer}: the model has {layers} layers, from 0 to {layers - 1}"


def _matches(pattern: str, names: list[str]) -> bool:
    """Whether PEFT finds a module by a key of its patterns: the end of a name, as a regular expression."""
    try:
        return any(re.match(rf"(?:.*\.)?(?:{pattern})$", name) for name in names)
    except re.error:
        return False


def trainer_parts(peft: PeftConfig, kind: str, sees: bool) -> dict[str, Any]:
    """The settings of the adapter, of PPO's value adapter, and of quantization, as fields of `Parts`."""
    value = lora_config(peft, kind, value=True, sees=sees) if peft.value else None
    return {"lora": lora_config(peft, kind, sees=sees), "quantization": quantization_config(peft), "value_lora": value}
