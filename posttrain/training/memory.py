"""The memory of this machine. `footprint` estimates how much a run takes; `out_of_memory` explains errors."""

from typing import Any


def machine_memory() -> tuple[int, int]:
    """(free, total) bytes of memory, within the limits of this process."""
    import resource

    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= limit < total:
        free, total = min(free, max(limit - psutil.Process().memory_info().vms, 0)), limit
    group, used = _of_group("memory.max", "memory.limit_in_bytes"), _of_group("memory.current", "memory.usage_in_bytes")
    return (min(free, max(group - (used or 0), 0)), min(total, group)) if group else (free, total)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory (blocks up to 32 MiB, 2 GiB in all), since each step asks for the same again.

    By default the kernel gets it back and clears it anew, which is some 5% of a training step on a CPU. Other C
    libraries are left as they are.
    """
    import ctypes

    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at most this on 64 bits
        mallopt(-1, (2 << 30) - 1)  # M_TRIM_THRESHOLD, a C int


def _of_group(now: str, before: str) -> int | None:
    """A number of bytes of this process's control group (container), by its name in versions 2 and 1; None without."""
    for path in (f"/sys/fs/cgroup/{now}", f"/sys/fs/cgroup/memory/{before}"):
        try:
            with open(path, encoding="ascii") as file:
                text = file.read().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 60:
            return int(text)
    return None


def describe_batch(inputs: Any) -> str:
    """Rows and length of the largest tensor of a batch, in words; "" for a batch without one."""
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
