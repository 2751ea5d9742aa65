"""Checks of choices, of models and where they are, of the probe and of the alarms; imports nothing heavy."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from posttrain.config import alarms, trainers
from posttrain.config.schema import Run

PLACED = "posttrain puts the model where it trains; leave it out (several GPUs: accelerate launch)"
QUANTIZED = "choose peft=qlora, whose options are peft.quantization"
# What `from_pretrained` takes and `model.kwargs` may not hold: set elsewhere, or decided here.
RESERVED_MODEL_KWARGS = {
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


def models(run: Run) -> list[str]:
    """Options of models that are set elsewhere, and revisions of what does not come from the hub."""
    reserved = RESERVED_MODEL_KWARGS
    errors = [f"model.kwargs.{name}: {reserved[name]}" for name in run.model.kwargs if name in reserved]
    of_hub = [
        ("model", "revision", run.model.revision, run.model.path),
        ("trainer.teacher", "revision", run.trainer.teacher.revision, run.trainer.teacher.model),
    ]
    sources = {"data": vars(run.data), **{f"data.mix.{name}": part for name, part in run.data.mix.items()}}
    for at, source in sources.items():
        if isinstance(source, dict):
            of_hub += [(at, name, source.get(name), source.get("path")) for name in ("name", "revision")]
    for at, name, value, path in of_hub:
        if value and not path:
            errors.append(
                f"{at}.{name}={value}: there is no {at}.{'model' if 'teacher' in at else 'path'}; leave it out"
            )
        # A folder may hold several configurations of a data set, by name.
        elif value and _is_here(path) and not (name == "name" and isinstance(path, str) and Path(path).is_dir()):
            errors.append(f"{at}.{name}={value}: {path} is no repository of the hub; leave it out")
    return errors


def _is_here(path: object) -> bool:
    """Whether it is no id of the hub: built in, drawn, files of one's own, a folder."""
    if not isinstance(path, str):
        return True
    return ":" in path or path.startswith((".", "/", "~")) or Path(os.path.expanduser(path)).exists()


def probe(run: Run) -> list[str]:
    """Everything wrong with the settings of the probe and of the alarms."""
    config = run.probe
    errors: list[str] = []
    # job=sample trains nothing and has no probe.
    for name, entry in config.gold.items() if run.job != "sample" else ():
        same = [
            n
            for n, e in run.reward.items()
            if (e.function, e.model, e.args) == (entry.function, entry.model, entry.args)
        ]
        if name in run.reward or same:
            errors.append(f"probe.gold.{name}: training sees reward.{(same or [name])[0]}; gold must be another reward")
        if name in config.rewards:
            errors.append(f"probe.gold.{name}: probe.rewards.{name} is there too; give one of them another name")
    known = [*run.reward, *config.rewards, *config.gold]
    if config.win_by is not None and config.win_by not in known:
        errors.append(f"probe.win_by={config.win_by}: no such reward; there are {', '.join(known) or 'none'}")
    if run.job == "train":
        kind = trainers.find(run.trainer.kind)
        sampled = kind is None or not kind.scores
        during = sampled and bool(config.prompts) and bool(config.every or config.during)
        measured = {
            "forgetting": None if config.texts else "probe.texts=embedded:texts, or a file",
            "over_optimisation": None if config.gold else "probe.gold.NAME.function or model, a reward not trained on",
        }
        errors += alarms.check(run.alarms, during, kind is not None and kind.is_a("PPOTrainer"), measured)
    return errors


def wrong_choice(key: str, value: object, allowed: tuple[str, ...]) -> str | None:
    """What is wrong with a value that must be one of `allowed`."""
    if value in allowed:
        return None
    near = difflib.get_close_matches(str(value), allowed, n=1)
    return f"{key}={value}: " + (f"did you mean {near[0]}? " if near else "") + f"choose from {', '.join(allowed)}"
