"""Runs of posttrain in this process, as the command makes them, with their trainer at hand."""

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def empty_folder() -> Iterator[Path]:
    """An empty working folder within, which is left and removed again."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(here)


def cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def now() -> float:
    """Seconds, when all that was begun on the GPU is done."""
    if cuda():
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def peak_gib() -> float:
    """The most that PyTorch has reserved on the GPU, in GiB; on a CPU the process's resident memory."""
    if cuda():
        import torch

        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Watch:
    """Keeps the trainer that a run builds, and the seconds of each of its optimizer steps."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.seconds: list[float] = []
        self.began = 0.0

    def callback(self) -> Any:
        from transformers import TrainerCallback

        watch = self

        class Stopwatch(TrainerCallback):
            def on_step_begin(self, *args: object, **kwargs: object) -> None:
                watch.began = now()

            def on_step_end(self, *args: object, **kwargs: object) -> None:
                watch.seconds.append(now() - watch.began)

        return Stopwatch()

    @property
    def step(self) -> float:
        """Median seconds of a step; the first one, which warms up, is left out where there are others."""
        return statistics.median(self.seconds[1:] or self.seconds)


def run(overrides: Sequence[str], callbacks: Sequence[Any] = ()) -> tuple[Path, Watch]:
    """What `python -m posttrain` does with `overrides`; returns the run directory, and of training what was watched.

    The trainer also gets `callbacks`.
    """
    import importlib

    from posttrain.config import composition, data_override, parse, schema
    from posttrain.jobs import preflight
    from posttrain.runs.directory import RunDirectory
    from posttrain.training import build

    watch, original = Watch(), build.build

    def watched(kind: str, parts: Any) -> Any:
        parts.callbacks += [watch.callback(), *callbacks]
        watch.trainer = original(kind, parts)
        return watch.trainer

    asked = parse.parse(composition.compose(overrides))
    recipe = next((o.split("=")[1] for o in overrides if o.startswith("+recipe=")), None)
    origin = schema.Origin(recipe, tuple(overrides), None)
    data_override.reset_settings(asked, origin.overrides)
    preflight.check(asked)
    build.build = watched
    try:
        getattr(importlib.import_module(f"posttrain.jobs.{asked.job}"), asked.job)(asked, origin)
    finally:
        build.build = original
    return RunDirectory.of(asked, origin).path, watch
