"""When a checkpoint is whole: every file that belongs to it is there, complete and loadable.

`seal` writes `files.json` into a checkpoint that is written to the end: its files with sizes and checksums, after they
have reached the disk. `damage` says what is wrong with one; a checkpoint without `files.json`, of an earlier version
or of a process killed just before it, is judged by what its files hold.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MANIFEST = "files.json"
# What the trainer itself must remember to go on exactly (posttrain.training.resume); one file per process.
PROGRESS = "progress.json"
STATE = "trainer_state.json"
# Bytes from which on a file's checksum would cost more time than it is worth; its size is always checked.
CHECKED = 1 << 30
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*")


def step(folder: Path) -> int:
    """The optimizer step after which the checkpoint `checkpoint-N` was taken."""
    return int(folder.name.rpartition("-")[2])


def seal(folder: Path) -> None:
    """Bring every file of a finished checkpoint to the disk, then write down which files it has."""
    sync(folder)
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "crc32": _crc32(path)} for path in _files(folder)
    }
    half = folder / f"{MANIFEST}.incomplete"
    with half.open("w", encoding="utf-8") as file:
        json.dump(files, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(half, folder / MANIFEST)
    sync_folder(folder)
    sync_folder(folder.parent)


def damage(folder: Path) -> str | None:
    """Why a checkpoint cannot be continued from, in a few words; `None` where it is whole."""
    try:
        if (folder / MANIFEST).is_file():
            return _against_manifest(folder) or _state(folder)
        return _structure(folder) or _state(folder) or _loadable(folder)
    except OSError as error:
        return f"{error.strerror or error}"


def progress(folder: Path) -> dict[str, Any]:
    """What the main process's trainer remembered when the checkpoint was taken; empty in those of earlier versions."""
    path = folder / PROGRESS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def sync(folder: Path) -> None:
    """Bring every file in a folder to the disk."""
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for inside in {folder, *(path.parent for path in _files(folder))}:
        sync_folder(inside)


def sync_folder(folder: Path) -> None:
    """Make names made in a folder as lasting as the files that they name."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems cannot; their files are synced all the same
        pass
    finally:
        os.close(handle)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(MANIFEST))


def _crc32(path: Path) -> int | None:
    if path.stat().st_size > CHECKED:
        return None
    sum_so_far = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            sum_so_far = zlib.crc32(part, sum_so_far)
    return sum_so_far


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
        if crc32 is not None and _crc32(path) != crc32:
            return f"{name} is damaged: it does not have its checksum"
    return None


def _state(folder: Path) -> str | None:
    """The trainer's state is that of this step; a file that was cut, or is another's, is not."""
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


def _structure(folder: Path) -> str | None:
    """Without a list of its files: weights, an optimizer, a schedule and random states there must be."""

    def one_of(*patterns: str) -> str | None:
        return None if any(any(folder.glob(p)) for p in patterns) else f"{patterns[0]} is missing"

    for index in folder.glob("*.safetensors.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, TypeError, KeyError, AttributeError):
            return f"{index.name} is damaged"
        if missing := sorted(name for name in shards if not (folder / name).is_file()):
            return f"{missing[0]} is missing"
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
    from safetensors import SafetensorError, safe_open
    from transformers.trainer_pt_utils import safe_globals

    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{path.relative_to(folder)} is damaged: {error}"
    for path in (*folder.glob("*.pt"), *folder.glob("rng_state*.pth")):
        try:
            with safe_globals():
                torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch have errors of their own for the same thing
            return f"{path.name} is damaged: {str(error).splitlines()[0]}"
    for path in (*folder.glob("progress*.json"), *folder.glob("*_state.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return f"{path.name} is damaged"
    return None
