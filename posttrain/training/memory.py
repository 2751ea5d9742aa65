"""Memory: how much of it a training takes at least, and what a failure to get some means."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers

if TYPE_CHECKING:
    from posttrain.config.schema import Run
    from posttrain.models.hardware import Precision

# What the libraries say of memory that is not there, where they have no error of its own for it.
OUT_OF_MEMORY_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "defaultcpuallocator",
    "out of memory",
    "std::bad_alloc",
)
REQUESTED = re.compile(r"[Tt]ried to allocate ([\d.]+) ?(bytes|[KMGT]iB)")
UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory was asked for and not there, on a CPU or a GPU."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if not isinstance(error, RuntimeError):  # torch.OutOfMemoryError is one
        return False
    return any(sign in str(error).lower() for sign in OUT_OF_MEMORY_WORDS)


def out_of_memory_message(error: BaseException, fix: str, at: str = "") -> str:
    """One message: how much was asked for, how much there is, what was being done, and what to change."""
    found = REQUESTED.search(str(error))
    asked = f"{format_bytes(float(found[1]) * UNITS[found[2]])} were asked for, " if found else ""
    return f"out of memory{at and f' in {at}'}: {asked}{available(error)}; {fix}"


def available(error: BaseException | None = None) -> str:
    """How much memory is free, of how much: of the GPU where it ran out, else of this machine."""
    import torch

    if torch.cuda.is_available() and not isinstance(error, MemoryError):
        free, total = torch.cuda.mem_get_info()
        return f"{format_bytes(free)} of {format_bytes(total)} are free on {torch.cuda.get_device_name()}"
    free, total = machine_memory()
    return f"{format_bytes(free)} of {format_bytes(total)} are free on this machine"


def machine_memory() -> tuple[int, int]:
    """Bytes of memory that are free and that there are, within the limits that this process has."""
    import resource

    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    for limit in (resource.getrlimit(resource.RLIMIT_AS)[0],):
        if 0 <= limit < total:
            free, total = min(free, max(limit - psutil.Process(os.getpid()).memory_info().vms, 0)), limit
    group = _group_limit()
    return (min(free, group), min(total, group)) if group else (free, total)


def _group_limit() -> int | None:
    """The limit of the container that this process is in, where it has one."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="ascii") as file:
                text = file.read().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 60:
            return int(text)
    return None


def describe_batch(inputs: Any) -> str:
    """Rows and length of the longest tensor of a batch, in words; empty where it holds none."""
    values = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, list) else []
    shapes = [value.shape for value in values if getattr(value, "ndim", 0) >= 2]
    if shapes:
        rows, length = max(shapes, key=lambda shape: shape[0] * shape[1])[:2]
        return f", a batch of {rows} rows of {length} tokens"
    return f", a batch of {len(inputs)} rows" if isinstance(inputs, list) and inputs else ""


def format_bytes(count: float) -> str:
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= bytes_:
            return f"{count / bytes_:.1f} {unit}"
    return f"{count:.0f} bytes"


@dataclass(frozen=True)
class FixedMemory:
    """Bytes that a training takes whatever its batch is, by what takes them; activations come on top."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        named = ", ".join(
            f"{name} {format_bytes(value)}" for name, value in self.parts.items() if value > 0.01 * self.total
        )
        return f"{format_bytes(self.total)} ({named}), and activations"


# Numbers, of the parameters' own type, that an optimizer keeps for each of them; AdamW's are two moments.
OPTIMIZER_STATES = (("adafactor", 0.1), ("adamw", 2), ("lion", 1), ("sgd", 0), ("rmsprop", 1), ("adagrad", 1))


def fixed_memory(run: Run, precision: Precision, parameters: tuple[int, int]) -> FixedMemory:
    """What weights, gradients, optimizer and a reference of its own take; `parameters` are (all, trained)."""
    total, trained = parameters
    args, full = run.trainer.args, run.peft.method == "none"
    bits = 4.5 if run.peft.quantization.get("load_in_4bit") else 8 if run.peft.quantization else None
    each = bits / 8 if bits else {"float32": 4, "bfloat16": 2, "float16": 2}[precision.dtype]
    own = each if full else 4  # an adapter is trained in float32
    sharded, optimizer_sharded = _sharding(args)
    return FixedMemory(
        {
            "weights": ((total - trained) * each + trained * own) / sharded,
            "gradients": trained * own / sharded,
            "optimizer": trained * _state(str(args.get("optim", "adamw_torch")), own) / optimizer_sharded,
            "reference": total * each / sharded if full and _keeps_reference(run.trainer.kind, args) else 0.0,
        }
    )


def _state(optimizer: str, width: float) -> float:
    """Bytes that an optimizer keeps for a parameter of `width` bytes on the device."""
    if "paged" in optimizer:
        return 0  # it moves to the machine's memory when there is no room
    numbers = next((count for name, count in OPTIMIZER_STATES if name in optimizer), 2)
    return numbers * (1 if "8bit" in optimizer else width)


def _keeps_reference(kind: str, args: dict[str, Any]) -> bool:
    """Whether a second, frozen model stands beside one that is trained in full."""
    if "ref_model" in trainers.of(kind).parameters:
        return not args.get("precompute_ref_log_probs", False)
    beta = args.get("beta", {"grpo": 0.0, "rloo": 0.05, "ppo": 0.05}.get(kind, 0.0))
    return kind in ("grpo", "rloo", "ppo") and bool(beta)


def _sharding(args: dict[str, Any]) -> tuple[int, int]:
    """Over how many processes the weights are divided, and the optimizer's state."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if args.get("fsdp") or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return world, world
    stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0" if not args.get("deepspeed") else "2"))
    return (world if stage == 3 else 1), (world if stage else 1)
