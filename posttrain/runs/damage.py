"""Why a checkpoint cannot be resumed from: a file is missing, cut short, or cannot be loaded.

A checkpoint with `files.json` (see `posttrain.runs.checkpoint.seal`) is compared with it. One without it, of an earlier
version or of a process that was killed before it was written, is judged by the content of its files.
"""

import json
import shutil
from pathlib import Path

from posttrain.errors import first_line
from posttrain.runs.checkpoint import MANIFEST, crc32_of, step

STATE = "trainer_state.json"
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*")


def damage(folder: Path) -> str | None:
    """Why a checkpoint cannot be continued from, in a few words; `None` where it is whole."""
    try:
        if (folder / MANIFEST).is_file():
            return _against_manifest(folder) or _state(folder)
        return weights(folder) or _structure(folder) or _state(folder) or _loadable(folder)
    except OSError as error:
        return f"{error.strerror or error}"


def remove_damaged(folders: list[Path]) -> list[str]:
    """Remove checkpoints that are not whole, and say why."""
    messages = []
    for folder in folders:
        if why := damage(folder):
            shutil.rmtree(folder)
            messages.append(f"{folder.name} is not whole and is removed: {why}")
    return messages


def _against_manifest(folder: Path) -> str | None:
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {name: (entry["size"], entry["crc32"]) for name, entry in files.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} is damaged"
    for name, (size, crc32) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if crc32 is not None and crc32_of(path) != crc32:
            return f"{name} is damaged: it does not have its checksum"
    return None


def _state(folder: Path) -> str | None:
    """Why the trainer's state is not that of this step (missing, damaged, or of another step); `None` if it is."""
    if not (folder / STATE).is_file():
        return f"{STATE} is missing"
    try:
        from transformers import TrainerState

        state = TrainerState.load_from_json(str(folder / STATE))
        if not isinstance(state.log_history, list) or state.global_step != step(folder):
            return f"{STATE} is not the state after step {step(folder)}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{STATE} is damaged"
    return None


def weights(folder: Path) -> str | None:
    """Why the safetensors in a folder cannot be loaded: a part is missing or cut short; `None` if they can."""
    from safetensors import SafetensorError, safe_open

    for index in folder.glob("*.safetensors.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, TypeError, KeyError, AttributeError):
            return f"{index.name} is damaged"
        if missing := sorted(name for name in shards if not (folder / name).is_file()):
            return f"{missing[0]} is missing"
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, "numpy"):  # reads the header, and compares it with the file's size
                pass
        except (SafetensorError, OSError) as error:
            return f"{path.relative_to(folder)} is damaged: {error}"
    return None


def _structure(folder: Path) -> str | None:
    """What a checkpoint without a list of files lacks: weights, optimizer, schedule or random states."""

    def one_of(*patterns: str) -> str | None:
        return None if any(any(folder.glob(p)) for p in patterns) else f"{patterns[0]} is missing"

    if not (folder / "adapter_config.json").is_file() and (folder / "adapter_model.safetensors").is_file():
        return "adapter_config.json is missing"
    return (
        one_of("*.safetensors", "pytorch_model_fsdp*", "global_step*")
        or one_of(*OPTIMIZERS)
        or one_of("scheduler.pt", "global_step*")
        or one_of("rng_state*.pth")
    )


def _loadable(folder: Path) -> str | None:
    import torch
    from transformers.trainer_pt_utils import safe_globals

    for path in (*folder.glob("*.pt"), *folder.glob("rng_state*.pth")):
        try:
            with safe_globals():
                torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch have their own errors for the same thing
            return f"{path.name} is damaged: {first_line(error)}"
    for path in (*folder.glob("progress*.json"), *folder.glob("*_state.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return f"{path.name} is damaged"
    return None
