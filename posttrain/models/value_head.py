"""Checkpoints of TRL's older PPO, `AutoModelForCausalLMWithValueHead`."""

import json
from pathlib import Path

from posttrain.errors import PosttrainError


def has_value_head(base: str) -> bool:
    """Whether the weights, a local folder or in the hub's cache, have the head of TRL's older PPO (`v_head.*`).

    It reads only names: from the index, or from the header of a single file.
    """
    from huggingface_hub import try_to_load_from_cache
    from safetensors import SafetensorError, safe_open

    if Path(base).is_absolute() and not Path(base).is_dir():
        return False  # a parent that is still to be merged: its weights come from a run of this project

    def file(name: str) -> Path | None:
        found = Path(base) / name if Path(base).is_dir() else try_to_load_from_cache(base, name)
        return Path(found) if isinstance(found, (str, Path)) and Path(found).is_file() else None

    if index := file("model.safetensors.index.json"):
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    elif whole := file("model.safetensors"):
        try:
            with safe_open(whole, "pt") as weights:
                names = weights.keys()
        except SafetensorError as error:
            raise PosttrainError(f"{whole}: is damaged ({error}); restore it, or copy the folder again") from error
    else:
        return False
    return any(name.startswith("v_head.") for name in names)
