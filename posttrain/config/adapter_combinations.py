"""Checks of the options of LoRA and of quantization; imports nothing heavy."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.config import options, trainers
from posttrain.config.schema import PeftConfig, Run
from posttrain.config.trainers import Kind

RESERVED_LORA = {
    "task_type": "it follows the trainer",
    "inference_mode": "it would train nothing",
    "peft_type": "it is LORA",
    "peft_version": "PEFT writes it",
    "base_model_name_or_path": "set model.path",
    "revision": "set model.revision",
    "auto_mapping": "it follows the model",
    "runtime_config": "it is for loading, and no training reads it",
    "arrow_config": "it routes between adapters that are trained already",
}
# LoRA initialisations that need a pass over data, or gradients, before training: not supported. Below, the supported.
UNSUPPORTED_INITIALISATIONS = ("eva", "corda", "lora_ga")
INITIALISATIONS = re.compile(r"gaussian|olora|pissa|orthogonal|mica")
INITIALISATION_OPTIONS = {
    "eva_config": "eva",
    "corda_config": "corda",
    "lora_ga_config": "lora_ga",
    "loftq_config": "loftq",
}


def check(run: Run) -> Iterator[str]:
    """Everything wrong with the options of LoRA and of quantization, one message each."""
    peft, kind = run.peft, trainers.of(run.trainer.kind)
    yield from options.check(options.LORA, peft.lora, "peft.lora", RESERVED_LORA)
    yield from options.check(options.LORA, peft.value, "peft.value", RESERVED_LORA)
    yield from _lora("peft.lora", peft.lora, peft, kind)
    yield from _changed_reference(run)
    if peft.value and not trainers.value_adapter(run):
        yield "peft.value: options of PPO's value adapter, for trainer=ppo with value_mode=adapter"
    yield from options.check(options.QUANTIZATION, peft.quantization, "peft.quantization")
    yield from _quantization(peft)


def _lora(path: str, lora: Mapping[str, Any], peft: PeftConfig, kind: Kind) -> Iterator[str]:
    """What PEFT would refuse only after the weights are loaded, or would ignore."""
    yield from _initialisation(path, lora, peft)
    yield from _nested(path, lora)
    modules, layers = lora.get("target_modules"), lora.get("layers_to_transform")
    if isinstance(modules, str):
        for name in ("layers_to_transform", "layers_pattern"):
            if lora.get(name) is not None:
                yield (
                    f"{path}.{name}: not together with target_modules={modules}, which is one text; name the "
                    "modules as a list, such as [q_proj,v_proj]"
                )
        if modules != "all-linear" and (wrong := _pattern(modules)):
            yield f"{path}.target_modules={modules}: no regular expression ({wrong}); a list names whole modules"
    if lora.get("layers_pattern") and layers is None:
        yield f"{path}.layers_pattern: only read with layers_to_transform; set that, or leave it out"
    if lora.get("lora_bias") is True and lora.get("use_dora") is True:
        yield f"{path}.lora_bias=true: not with use_dora=true; leave one of them out"
    if lora.get("lora_bias") is True and isinstance(lora.get("init_lora_weights"), str):
        yield f"{path}.lora_bias=true: only with init_lora_weights=true or false"
    if isinstance(modules, list) and "lm_head" in modules and not kind.scores:
        yield (
            f"{path}.target_modules=lm_head: TRL reads the head's own weights, so that an adapter on it would not be "
            "trained; leave it out, or name it in modules_to_save"
        )
    if lora.get("megatron_config"):
        yield f"{path}.megatron_config: there is no Megatron here; leave it out"


def _nested(path: str, lora: Mapping[str, Any]) -> Iterator[str]:
    """Errors in options that hold nested options, whose types PEFT does not check."""
    for name, value in lora.items():
        empty = name.endswith("_pattern") and name != "layers_pattern"  # these are read; others may be null
        if not (empty or name.endswith("_config") or name == "use_bdlora"):
            continue
        if not isinstance(value, dict) and (empty or value is not None):
            yield f"{path}.{name}={value}: expected settings, {{KEY: VALUE}}; or leave it out"


def _pattern(text: str) -> str | None:
    try:
        re.compile(text)
    except re.error as error:
        return str(error)
    return None


def _initialisation(path: str, lora: Mapping[str, Any], peft: PeftConfig) -> list[str]:
    start = lora.get("init_lora_weights", True)
    where = f"{path}.init_lora_weights={start}"
    errors = [
        f"{path}.{name}: only read with init_lora_weights={needs}, which is not made here; leave it out"
        for name, needs in INITIALISATION_OPTIONS.items()
        if lora.get(name)
    ]
    if isinstance(start, bool) or not isinstance(start, str):
        return errors
    if start.startswith(UNSUPPORTED_INITIALISATIONS):
        errors.append(
            f"{where}: needs passes over data before training, which are not made here; leave it out, or choose "
            "gaussian, pissa or olora"
        )
    elif start.startswith("pissa_niter_"):
        errors.append(
            f"{where}: its SVD is random, so that the saved adapter fits no other load of the base; take pissa"
        )
    elif start == "loftq":
        errors.append(
            f"{where}: needs full-precision weights to quantize, and this base is loaded quantized; leave it out, or "
            "choose gaussian"
        )
    elif not INITIALISATIONS.fullmatch(start):
        errors.append(f"{where}: choose from true, gaussian, pissa, olora, orthogonal, mica")
    elif peft.quantization and start not in ("gaussian", "olora"):
        errors.append(f"{where}: needs weights that are not quantized; choose peft=lora, or gaussian")
    if start == "orthogonal" and isinstance(rank := lora.get("r", 8), int) and rank % 2:
        errors.append(f"{where}: needs an even rank, and {path}.r={rank}")
    return errors


def _changed_reference(run: Run) -> list[str]:
    """Options that change the base weights, so that a base without the adapter is no reference.

    PiSSA, OLoRA and the like do so at the start, `bias` in training.
    """
    start, bias = run.peft.lora.get("init_lora_weights", True), run.peft.lora.get("bias", "none")
    if run.peft.method == "none" or not (trainers.of(run.trainer.kind).reference or run.model.init_from):
        return []
    if bias != "none":
        return [
            f"peft.lora.bias={bias}: trains the base's biases, and the base is the reference of {run.trainer.kind} and "
            "of the runs that start from it; leave it out"
        ]
    if isinstance(start, bool) or start == "gaussian":
        return []
    return [
        f"peft.lora.init_lora_weights={start}: changes the base weights, which are the reference of "
        f"{run.trainer.kind} and of the runs that start from it; leave it out, or choose gaussian"
    ]


def _quantization(peft: PeftConfig) -> list[str]:
    given = peft.quantization
    if not given:
        return []
    if given.get("load_in_4bit") is True and given.get("load_in_8bit") is True:
        return ["peft.quantization.load_in_8bit=true: load_in_4bit=true is set too; set load_in_4bit=false"]
    if not given.get("load_in_4bit") and not given.get("load_in_8bit"):
        return [
            "peft.quantization.load_in_4bit=false: load_in_8bit is not set either, so that nothing would be quantized; "
            "choose peft=lora"
        ]
    skip = given.get("llm_int8_skip_modules")
    if skip is not None and not (isinstance(skip, list) and all(isinstance(name, str) for name in skip)):
        return [f"peft.quantization.llm_int8_skip_modules={skip}: expected a list of names of modules"]
    return []
