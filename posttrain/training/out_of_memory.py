"""Out-of-memory errors: recognised, and explained with the fix."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from posttrain.errors import PosttrainError
from posttrain.training.memory import format_bytes, machine_memory

# Parts of the libraries' messages on a lack of memory, where they have no error class for it.
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
    """Whether an error means that memory ran out, on a CPU or a GPU."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if not isinstance(error, RuntimeError):  # torch.OutOfMemoryError is one
        return False
    return any(sign in str(error).lower() for sign in OUT_OF_MEMORY_WORDS)


def out_of_memory_message(error: BaseException, fix: str, at: str = "") -> str:
    """The message for memory that ran out: the size asked for, the free memory, the work `at` hand, and the fix."""
    found = REQUESTED.search(str(error))
    asked = f"{format_bytes(float(found[1]) * UNITS[found[2]])} were asked for, " if found else ""
    return f"out of memory{at and f' in {at}'}: {asked}{available(error)}; {fix}"


@contextmanager
def explain_memory_errors(fix: str, at: str = "") -> Iterator[None]:
    """In the block, turn an out-of-memory error into a `PosttrainError` with the fix."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise PosttrainError(out_of_memory_message(error, fix, at)) from error


def available(error: BaseException | None = None) -> str:
    """How much memory is free, of how much: of the GPU where it ran out, else of this machine."""
    import torch

    if torch.cuda.is_available() and not isinstance(error, MemoryError):
        free, total = torch.cuda.mem_get_info()
        return f"{format_bytes(free)} of {format_bytes(total)} are free on {torch.cuda.get_device_name()}"
    free, total = machine_memory()
    return f"{format_bytes(free)} of {format_bytes(total)} are free on this machine"
