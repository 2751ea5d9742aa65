"""A job as Hydra runs it: parse, check, start; returns the number that a sweep optimises."""

from __future__ import annotations

import importlib
import os
import shlex
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from posttrain import extras
from posttrain.config import parse, recipes
from posttrain.jobs import preflight, sweep
from posttrain.training.signals import Ending


def job(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """One run: what Hydra calls, once, or once per job of a sweep."""
    run = parse.parse(cfg)
    preflight.check(run)
    # posttrain.jobs.train.train and so on: torch and trl load only after the cheap checks.
    start = getattr(importlib.import_module(f"posttrain.jobs.{run.job}"), run.job)
    return start(run, parse.origin(HydraConfig.get()))


def run(argv: list[str]) -> int:
    """Compose `argv` and run it, or each job of a sweep; returns the exit code, unless Hydra exits with its own."""
    if missing := extras.missing_plugin(argv):
        print(missing, file=sys.stderr)
        return 1
    recipes.register()
    entry = hydra.main(version_base="1.3", config_path=str(recipes.ROOT / "conf"), config_name="config")(job)
    # A console script, unlike `python -m`, does not find the user's own reward functions in the current folder.
    sys.path.append(os.getcwd())
    sys.argv[1:] = argv  # Hydra reads its overrides there
    try:
        with Ending(shlex.join(["posttrain", *argv])):
            entry()
    finally:
        sweep.report()
    return 0
