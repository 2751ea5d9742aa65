"""The memory of this machine; how much a run takes is in `footprint`, what a failure to get some means in
`out_of_memory`."""

from typing import Any


def machine_memory() -> tuple[int, int]:
    """Bytes of memory that are free and that there are, within the limits that this process has."""
    import resource

    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= limit < total:
        free, total = min(free, max(limit - psutil.Process().memory_info().vms, 0)), limit
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
