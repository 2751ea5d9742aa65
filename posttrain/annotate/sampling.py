"""Candidates sampled from a run by job=sample, with the run's own recipe."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.console import print_plain
from posttrain.errors import PosttrainError, first_line
from posttrain.runs.directory import RunDirectory
from posttrain.runs.next_command import training_command

# Settings of the run's own command that do not belong to the sampling of its completions.
LEFT_OUT = ("job", "name", "dry_run", "objective", "sample.", "evaluate.", "tracking", "hydra")
# The default number of prompts: minutes of sampling, some hours of reading.
DEFAULTS = ("sample.prompts=64",)


def generates(record: dict[str, Any] | None) -> bool:
    """Whether this is the `run.json` of a run with a model, not of one with data."""
    return bool(record) and record.get("job", "train") == "train"  # type: ignore[union-attr]


def command(run: Path, record: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """The overrides of job=sample for `run`: those of its own command, all completions kept, then `overrides`."""
    words = shlex.split(record.get("command", ""))
    own = words[words.index("posttrain") + 1 :] if "posttrain" in words else []
    own = [word for word in own if not word.lstrip("+").startswith(LEFT_OUT)]
    given = {word.split("=", 1)[0].lstrip("+") for word in (*overrides, "model.init_from=")}
    # Hydra accepts a group only once, so the group in `overrides` replaces the run's own.
    own = [word for word in own if word.split("=", 1)[0].lstrip("+") not in given]
    return [*own, "job=sample", f"model.init_from={run}", "sample.select=all", *DEFAULTS, *overrides]


def next_command(source: str, out: Path) -> str:
    """The command that trains on `out` by DPO, from the sampled run, or from the model that the data came from."""
    folder = Path(source).expanduser()
    record = (RunDirectory(folder).record() if folder.is_dir() else None) or {}
    model = source if generates(record) else (record.get("model") or {}).get("path", "")
    return training_command("dpo", model, record.get("recipe"), str(out))


def sample(run: Path, record: dict[str, Any], overrides: Sequence[str]) -> Path:
    """Sample, resume sampling, or find earlier samples; returns the run directory. Raises `PosttrainError`."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from posttrain.config import data_override, parse, recipes, schema
    from posttrain.jobs import preflight

    words = command(run, record, overrides)
    print_plain(f"sampling  {shlex.join(['posttrain', *words])}")
    recipes.register()
    try:
        with initialize_config_dir(str(recipes.ROOT / "conf"), version_base="1.3"):
            composed = compose("config", overrides=words)
    except (HydraException, OmegaConfBaseException) as error:
        raise PosttrainError(f"{shlex.join(overrides)}: {first_line(error)}") from None
    settings = parse.parse(composed)
    data_override.reset_settings(settings, words)
    if settings.job != "sample" or settings.sample.select not in ("all", "pairs") or settings.dry_run:
        raise PosttrainError("job, dry_run, sample.select: candidates need job=sample, with sample.select=all or pairs")
    sys.path.append(os.getcwd())  # the user's own reward functions, as `posttrain` finds them
    preflight.check(settings)
    recipe = next((word.split("=", 1)[1] for word in words if word.startswith("+recipe=")), None)
    origin = schema.Origin(recipe, tuple(words), None)
    importlib.import_module("posttrain.jobs.sample").sample(settings, origin)
    return RunDirectory.of(settings, origin).path
