"""Whether a local `model.path` holds a whole model: a weight that is missing would be drawn at random."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from posttrain.config import trainers
from posttrain.config.schema import Run
from posttrain.errors import PosttrainError, first_line
from posttrain.models.architecture import load_config


def check(run: Run, folder: Path) -> None:
    """Raise `PosttrainError` for an adapter, and before a training for weights that are missing or damaged."""
    if (folder / "adapter_config.json").is_file():
        raise PosttrainError(
            f"model.path={run.model.path}: an adapter, not a whole model; set model.init_from={run.model.path} to "
            "start from that run, and leave model.path as it was there"
        )
    if run.job == "train" and (why := _damage(run, folder)):
        raise PosttrainError(f"model.path={run.model.path}: {why}; restore it, or copy the folder again")


def _damage(run: Run, folder: Path) -> str | None:
    """Why the weights cannot all be loaded, from Transformers' own loading without their data; `None` if unknown."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    known = load_config(run.model, str(folder), run.model.revision)
    if getattr(known, "quantization_config", None):
        return None
    auto: Any = AutoModelForCausalLM
    options = {**run.model.kwargs, "use_safetensors": True, "trust_remote_code": run.model.trust_remote_code}
    if scores := trainers.of(run.trainer.kind).scores:
        auto, options["num_labels"] = AutoModelForSequenceClassification, 1
    options |= {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, info = auto.from_pretrained(folder, **options)
    except Exception as error:  # any other fault is explained where the model is built
        return _unreadable(run, folder, error)
    if missing := missing_weights(model, info["missing_keys"], scores):
        return f"its weights lack {missing}"
    if info["mismatched_keys"] and not run.model.kwargs.get("ignore_mismatched_sizes"):
        name, saved, wanted = min(info["mismatched_keys"])
        return f"{name} has the shape {list(saved)}, and config.json asks for {list(wanted)}"
    return None


def _unreadable(run: Run, folder: Path, error: Exception) -> str | None:
    from posttrain.runs import damage, lineage

    if why := damage.weights(folder):
        return re.sub(r" is damaged: (.*)", r": is damaged (\1)", why)  # as `value_head` says it
    if not isinstance(error, OSError):
        return None
    lineage.source(run.model.path, key="model.path")  # names a pickle
    return first_line(error) if any(folder.glob("*.safetensors")) else "it has no weights, model.safetensors"


def missing_weights(model: Any, missing: Iterable[str], new_head: bool) -> str | None:
    """The weights that a checkpoint lacks, in words; `new_head` allows one without the head, which begins at random."""
    base = f"{model.base_model_prefix}."
    weights = {name for name, _ in model.named_parameters()}
    names = sorted(name for name in weights.intersection(missing) if not new_head or name.startswith(base))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more or None
