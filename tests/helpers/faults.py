"""Runs that die at a chosen moment, in a forked child of this process, and what two runs must have in common."""

import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.runs import compose, rows, weights

KILLED = 137
HELD: list[Any] = []
# What depends on the clock, and on which of two runs is looked at.
TIMES = ("runtime", "per_second", "seconds", "share", "step_time", "time/", "started", "finished", "command", "name")
# Weights are compared themselves: a digest of the file would say the same.
OTHER = ("content", "tracking")


def run(*overrides: str) -> Any:
    """Do a job in this process, as the command would; returns its directory."""
    from posttrain.jobs import preflight
    from posttrain.runs.directory import RunDirectory

    job, origin = compose(*overrides)
    preflight.check(job)
    getattr(importlib.import_module(f"posttrain.jobs.{job.job}"), job.job)(job, origin)
    return RunDirectory.of(job, origin)


def directory(*overrides: str) -> Any:
    from posttrain.runs.directory import RunDirectory

    return RunDirectory.of(*compose(*overrides))


def start(work: Callable[[], Any], log: Path) -> int:
    """`work` in a forked child, whose output goes to `log`; returns its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # A console that was captured before the fork would write into the parent's buffers.
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        from datasets import fingerprint

        from posttrain.console import console
        from posttrain.data import store

        console.file = sys.stdout
        # Parent and child may work at the same time, with files of their own.
        fingerprint.fingerprint_rng.seed()
        if store._folder.cache_info().currsize:
            HELD.append(store._folder())  # or it would be removed
        store._folder.cache_clear()
        work()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return 0


def wait(child: int, seconds: float = 120.0) -> int:
    """The exit status of a child, negative for a signal.

    A child that is stuck is killed, and fails the test: it used no CPU time for `seconds`, or took ten times as long. A
    busy machine makes it slow only.
    """
    began = moved = time.monotonic()
    used = -1
    while time.monotonic() < min(moved + seconds, began + 10 * seconds):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        ticks = sum(map(int, Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]))
        if ticks != used:
            used, moved = ticks, time.monotonic()
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("stuck")


def dying(target: str, call: int = 1, after: bool = False) -> Callable[[], None]:
    """A patch by which the process is gone at the `call`-th call of `module:name.of.function`, or right after it."""

    def patch() -> None:
        module, _, path = target.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        original, calls = getattr(owner, name), 0

        def deadly(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call and not after:
                os._exit(KILLED)
            result = original(*args, **kwargs)
            if calls == call and after:
                os._exit(KILLED)
            return result

        setattr(owner, name, deadly)

    return patch


def differences(one: Any, other: Any) -> list[str]:
    """In what two finished run directories differ, times aside: weights, metrics, samples, run.json."""
    import torch

    found = []
    first, second = weights(one.model), weights(other.model)
    found += [f"weights of {name}" for name in first if not torch.equal(first[name], second[name])]
    for name in ("metrics", "samples"):
        left, right = (_plain(rows(path)) if (path := getattr(d, name)).is_file() else [] for d in (one, other))
        if len(left) != len(right):
            found.append(f"{name}: {len(left)} and {len(right)} rows")
        both = enumerate(zip(left, right, strict=False))
        found += [f"{name}, row {i}: {_changed(a, b)}" for i, (a, b) in both if a != b]
    record, again = _plain(one.record()), _plain(other.record())
    if record != again:
        found.append(f"run.json: {_changed(record, again)}")
    return found


def _changed(one: dict[str, Any], other: dict[str, Any]) -> str:
    keys = [k for k in {**one, **other} if one.get(k) != other.get(k)]
    return "; ".join(f"{k}: {one.get(k)} / {other.get(k)}" for k in keys)


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if not any(word in k for word in TIMES) and k not in OTHER}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return repr(value)  # NaN equals NaN
