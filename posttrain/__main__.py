"""`python -m posttrain +recipe=NAME`: parse, check, run; returns the number that a sweep optimises."""

from __future__ import annotations

import importlib
import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from posttrain.config import parse, recipes
from posttrain.jobs import preflight, sweep


def job(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """One run: what Hydra calls, once, or once per job of a sweep."""
    run = parse.parse(cfg)
    preflight.check(run)
    # posttrain.jobs.train.train and so on: torch and trl load only after the cheap checks.
    start = getattr(importlib.import_module(f"posttrain.jobs.{run.job}"), run.job)
    return start(run, parse.origin(HydraConfig.get()))


def main() -> None:
    if {"--help", "-h"} & set(sys.argv[1:]):
        # Hydra lists its groups for a help page by copying its whole config store for each: a second of waiting.
        print(recipes.help_text())
        return
    recipes.register()
    entry = hydra.main(version_base="1.3", config_path=str(recipes.ROOT / "conf"), config_name="config")(job)
    # A console script, unlike `python -m`, does not find the user's own reward functions in the current folder.
    sys.path.append(os.getcwd())
    try:
        entry()
    finally:
        sweep.report()


if __name__ == "__main__":
    main()
