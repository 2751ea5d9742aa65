"""Runs untrusted Python code in a limited subprocess: a function of some source text on JSON arguments.

    outcome = run("def grade(sample, item): return 1.0", "grade", [{}, {}])
    outcome.value, outcome.error    # 1.0, None

Guaranteed on Linux, whatever the code does: an empty environment, limits on wall clock, CPU time, memory, size of a
file, of its folder and of output, no process of its process group afterwards, and an empty folder that is gone
afterwards. With seccomp, which nearly every system permits: no network, no other process, none left. With Landlock
(Linux 5.13): no files but Python's own and that folder. With namespaces, which containers often refuse, also: no other
processes in sight, a folder that never grows beyond its limit. `Outcome.isolation` names what was in force (see
`isolation.py`), `missing_walls` asks, and `require_walls` refuses. Code in the same interpreter as what judges it can
forge the judgement (see `assertions.py`).
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from posttrain.console import printable
from posttrain.errors import PosttrainError

ISOLATION = Path(__file__).with_name("isolation.py")
START_SECONDS = 1.0  # seconds, for the interpreter to start and to tell what went wrong
# Python itself takes some 30 MB of address space.
MINIMUM_LIMITS: dict[str, Any] = {"seconds": 0.1, "memory": 64 << 20, "disk": 4096, "output": 1}
MOST = 1 << 50  # of seconds and of bytes; limits of processes take no more than 64 bits
# What code that gets around the interpreter's hook can do if none of these parts is in force.
WALLS = {
    "files of yours": {"landlock"},
    "the network and other processes": {"seccomp", "namespaces"},
    "what root may do": {"capabilities"},
}
WALLS_CHOICES = ("full", "reduced")
MOST_FILES = 2000  # files and folders in the folder
POLL_SECONDS = 0.05  # seconds between two looks at the folder's size


@dataclass(frozen=True)
class Limits:
    """`seconds` of wall clock, and as many of CPU; the rest in bytes. `disk` holds for the folder as a whole.

    `packages` lets the code import what is installed here, besides the standard library.
    """

    seconds: float = 10
    memory: int = 1 << 30
    disk: int = 16 << 20
    output: int = 1 << 20
    packages: bool = False


@dataclass(frozen=True)
class Outcome:
    """The function's value, or `error`: why there is none. `output` is what the code printed."""

    value: Any
    error: str | None
    output: str
    isolation: tuple[str, ...]


def run(source: str, function: str, arguments: list[Any], limits: Limits | None = None) -> Outcome:
    """Call `function(*arguments)` of `source` in its own process. Errors of the code are no exceptions here.

    Raises `PosttrainError` where the system has no limits on processes (Windows).
    """
    if os.name != "posix":
        raise PosttrainError("sandbox: this system has no limits on processes; run it on Linux")
    limits = limits or Limits()
    with _folder() as folder:
        result, channel = os.pipe()
        order = {
            "source": source,
            "function": function,
            "arguments": arguments,
            "channel": channel,
            "seconds": limits.seconds,
            "memory": limits.memory,
            "disk": limits.disk,
            "packages": limits.packages,
            "path": _packages() if limits.packages else [],
            "readable": [*_python(), *(_packages() if limits.packages else [])],
        }
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(ISOLATION)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                pass_fds=[channel],
                start_new_session=True,
            )
        except OSError:
            os.close(result)
            raise
        finally:
            os.close(channel)
        try:
            answer, output, error = _exchange(process, json.dumps(order, default=str).encode(), result, limits, folder)
        finally:
            os.close(result)
            _kill_group(process)
    if error is None and not answer:
        error = _died(process.returncode, output)
    if error is not None:
        return Outcome(None, error, output, ())
    try:
        report = json.loads(answer)
        error = None if report.get("error") is None else printable(str(report["error"]))
        return Outcome(report.get("value"), error, output, tuple(report.get("isolation", ())))
    except (ValueError, AttributeError, TypeError, RecursionError):  # the code has written to the channel itself
        return Outcome(None, "the code tampered with its result", output, ())


def run_all(calls: list[tuple[str, str, list[Any]]], limits: Limits | None = None) -> list[Outcome]:
    """`run` each call, several at a time."""
    if len(calls) < 2:
        return [run(source, function, arguments, limits) for source, function, arguments in calls]
    with ThreadPoolExecutor(min(len(calls), os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda call: run(call[0], call[1], call[2], limits), calls))


def check(args: dict[str, Any], key: str) -> list[str]:
    """Errors in the limits among the args of a reward."""
    errors = []
    for name, least in MINIMUM_LIMITS.items():
        value = args.get(name, least)
        if isinstance(value, bool) or not isinstance(value, (int, float) if name == "seconds" else int):
            errors.append(f"{key}.{name}={value}: expected a number{'' if name == 'seconds' else ' of bytes'}")
        elif not value >= least:  # NaN is no limit
            errors.append(f"{key}.{name}={value}: expected at least {least}")
        elif value > MOST:
            errors.append(f"{key}.{name}={value}: expected at most {MOST}")
    if not isinstance(args.get("packages", False), bool):
        errors.append(f"{key}.packages={args['packages']}: expected true or false")
    if (walls := args.get("walls", "full")) not in WALLS_CHOICES:
        errors.append(f"{key}.walls={walls}: choose from {', '.join(WALLS_CHOICES)}")
    return errors


def check_walls(args: dict[str, Any], key: str) -> list[str]:
    """Errors for a reward that runs untrusted code on a system without all walls."""
    if args.get("execute") is not True or args.get("walls") == "reduced":
        return []
    return [wrong] if (wrong := reduced_isolation(f"{key}.walls")) else []


def require_walls(key: str, walls: str = "full") -> None:
    """Raise `PosttrainError` where this system lacks a wall, unless `walls`, the option at `key`, is `reduced`."""
    if walls != "reduced" and (wrong := reduced_isolation(key)):
        raise PosttrainError(wrong)


def reduced_isolation(key: str) -> str | None:
    """The message for untrusted code on a system that lacks walls; `None` where all are in force."""
    if (missing := missing_walls()) is None:
        return None
    return (
        f"{key}=full: {missing}; run it on Linux with Landlock and seccomp (docs/graders.md), or, if the code is to be "
        f"trusted that far, set {key}=reduced"
    )


@cache
def missing_walls() -> str | None:
    """The walls against malicious code that this system lacks; `None` where all are in force."""
    outcome = run("def f(): return 1", "f", [])
    if outcome.error:
        raise PosttrainError(f"sandbox: does not run here: {outcome.error}")
    missing = [
        f"{what} ({' and '.join(sorted(ways))})" for what, ways in WALLS.items() if not ways & {*outcome.isolation}
    ]
    return f"code that breaks out of Python reaches {', '.join(missing)} here" if missing else None


def _exchange(
    process: subprocess.Popen[bytes], order: bytes, result: int, limits: Limits, folder: str
) -> tuple[bytes, str, str | None]:
    """Send the order and read until the end: the answer, the printed output, and the limit that was exceeded."""
    assert process.stdin is not None
    assert process.stdout is not None
    deadline = time.monotonic() + limits.seconds + START_SECONDS
    read: dict[int, bytearray] = {result: bytearray(), process.stdout.fileno(): bytearray()}
    began, looked, error = time.monotonic(), time.monotonic(), None
    with selectors.DefaultSelector() as selector:
        for number in read:
            selector.register(number, selectors.EVENT_READ)
        _send(process, order)
        while selector.get_map() and error is None:
            events = selector.select(min(max(deadline - time.monotonic(), 0), POLL_SECONDS))
            if (now := time.monotonic()) >= deadline:
                error = _too_long(limits)
            elif now - looked >= POLL_SECONDS:
                looked = now
                error = "disk: more than the limit" if _full(folder, limits.disk) else None
            for key, _ in events:
                if piece := os.read(key.fd, 1 << 16):
                    read[key.fd] += piece
                    if len(read[key.fd]) > limits.output:
                        error = f"output: more than {limits.output} bytes"
                else:
                    selector.unregister(key.fd)
    if error is None and not read[result] and time.monotonic() - began >= limits.seconds:
        error = _too_long(limits)
    printed = bytes(read[process.stdout.fileno()][: limits.output]).decode(errors="replace")
    return bytes(read[result]), printed, error


@contextmanager
def _folder() -> Iterator[str]:
    """An empty folder, gone afterwards whatever lies in it."""
    kept = tempfile.TemporaryDirectory(prefix="posttrain-sandbox-", ignore_cleanup_errors=True)
    try:
        yield kept.name
    finally:
        try:
            kept.cleanup()
        except RecursionError:  # folders in folders, deeper than Python before 3.13 goes
            for tool in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
                subprocess.run([*tool, "--", kept.name], stderr=subprocess.DEVNULL, check=False)


def _send(process: subprocess.Popen[bytes], order: bytes) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it died at its start; what it printed says why
        process.stdin.write(order)
        process.stdin.close()


def _full(folder: str, limit: int) -> bool:
    """Whether the folder exceeds the limit. In a namespace it looks empty; the file system there has its own limit."""
    used, count, folders = 0, 0, [folder]
    with suppress(OSError):  # what the code removes meanwhile, or hides
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    count += 1
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        used += entry.stat(follow_symlinks=False).st_blocks * 512
                    # A file takes whole blocks, so that each may have one more than its bytes.
                    if used > limit + 4096 * count or count > MOST_FILES:
                        return True
    return False


def _too_long(limits: Limits) -> str:
    return f"time: more than {limits.seconds:g} s"


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group, so that no child stays, and reap.

    With namespaces, this process guards an inner one, which may have left the group: on SIGTERM it kills the inner one.
    """
    with suppress(ProcessLookupError, PermissionError):
        process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(START_SECONDS)
    with suppress(ProcessLookupError, PermissionError):  # PermissionError: zombies only (macOS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _died(status: int, output: str) -> str:
    """The error message for a process that ended without an answer."""
    last = output.strip().splitlines()[-1:] or [""]
    return f"the process ended without a result (status {status}){': ' + printable(last[0][:500]) if last[0] else ''}"


@cache
def _python() -> list[str]:
    """The folders of Python itself, which the code may read."""
    places = [sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.path.realpath(sys.executable))]
    places = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *places[3:]]
    return sorted({os.path.realpath(place) for place in places} | {str(ISOLATION)})


@cache
def _packages() -> list[str]:
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
