"""`model.kwargs`: what `from_pretrained` takes, or settings of the model's config."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from posttrain.config.schema import ModelConfig
from posttrain.config.suggestions import did_you_mean
from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


QUANTIZED = "choose peft=qlora, whose options are peft.quantization"
PLACED = "posttrain puts the model where it trains; leave it out (several GPUs: accelerate launch)"
# Arguments of `from_pretrained` that `model.kwargs` may not hold, with what to set instead.
RESERVED = {
    **dict.fromkeys(("dtype", "torch_dtype"), "set model.dtype"),
    "attn_implementation": "set model.attn_implementation",
    "revision": "set model.revision",
    "trust_remote_code": "set model.trust_remote_code",
    **dict.fromkeys(("quantization_config", "load_in_4bit", "load_in_8bit"), QUANTIZED),
    **dict.fromkeys(("device_map", "max_memory", "device_mesh", "distributed_config", "tp_plan", "tp_size"), PLACED),
    **dict.fromkeys(("offload_folder", "offload_buffers", "offload_state_dict"), PLACED),
    **dict.fromkeys(("use_safetensors", "gguf_file", "weights_only"), "only safetensors are read here"),
    "subfolder": "set model.path to that folder",
    "cache_dir": "set HF_HOME in the environment",
    "local_files_only": "set HF_HUB_OFFLINE=1 in the environment",
    **dict.fromkeys(("config", "state_dict", "pretrained_model_name_or_path"), "set model.path"),
    **dict.fromkeys(("output_loading_info", "num_labels", "problem_type"), "it follows the trainer"),
}


def set_elsewhere(model: ModelConfig) -> list[str]:
    """Errors for entries of `model.kwargs` that another setting, or posttrain itself, decides."""
    return [f"model.kwargs.{name}: {RESERVED[name]}" for name in model.kwargs if name in RESERVED]


def check_names(model: ModelConfig, known: PretrainedConfig) -> None:
    """Raise `PosttrainError` for entries that neither `from_pretrained` nor the model's config has."""
    from transformers import PreTrainedModel

    # It reads many options from its **kwargs by name.
    source = inspect.getsource(PreTrainedModel.from_pretrained)
    own = {*re.findall(r'"(\w+)"', source), *inspect.signature(PreTrainedModel.from_pretrained).parameters}
    errors = []
    for name in model.kwargs:
        if name not in own and not hasattr(known, name):
            hint = f"; {did_you_mean(name, [*own, *known.to_dict()])}".rstrip("; ")
            errors.append(f"model.kwargs.{name}: neither from_pretrained nor the model's config has it{hint}")
    if errors:
        raise PosttrainError("\n".join(errors))


def check_shapes(model: ModelConfig, known: PretrainedConfig, as_saved: Any, make: Callable[[Any], Any]) -> None:
    """Raise `PosttrainError` for settings of the model's config that give no model, or other shapes than `as_saved`.

    Weights of other shapes would be initialised at random. `make` returns the model of a config, without weights.
    """
    given = {name: value for name, value in model.kwargs.items() if hasattr(known, name)}
    if not given:
        return
    said = ", ".join(f"model.kwargs.{name}={value}" for name, value in given.items())
    try:
        made = make(type(known).from_dict({**known.to_dict(), **given}))
    except Exception as error:  # whatever the model's code meets
        raise PosttrainError(
            f"{said}: {type(error).__name__}: {str(error).strip().splitlines()[-1].strip()}"
        ) from error
    one, other = ({name: p.shape for name, p in m.named_parameters()} for m in (as_saved, made))
    if one != other:
        changed = min(name for name in {**one, **other} if one.get(name) != other.get(name))
        raise PosttrainError(f"{said}: the weights of {model.path} have another shape ({changed}); leave it out")
