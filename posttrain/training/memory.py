"""Memory that there is, and what a failure to get some means; how much a run takes is in `footprint`."""

from __future__ import annotations

import errno
import os
import re
from typing import Any

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
