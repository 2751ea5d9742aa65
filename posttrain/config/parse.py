"""From Hydra's composed config to a checked `Run`; imports nothing heavy."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from posttrain.config import trainers
from posttrain.config.schema import OTHER_JOBS, Origin, Run
from posttrain.errors import PosttrainError

SCHEMA: Any = OmegaConf.structured(Run)  # `OmegaConf.merge` copies it


def parse(cfg: DictConfig) -> Run:
    """Hydra's config as a `Run`; raises `PosttrainError` for unknown keys, wrong types and missing values."""
    run, errors = read(cfg)
    if errors or run is None:
        raise PosttrainError("\n".join(errors))
    return run


def read(cfg: DictConfig) -> tuple[Run | None, list[str]]:
    """The `Run` of Hydra's config, and its errors; None where a required value or a reference is missing."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    errors: list[str] = []
    try:
        merged = OmegaConf.merge(SCHEMA, plain)
    except OmegaConfBaseException:
        from posttrain.config import schema_errors

        merged = OmegaConf.merge(SCHEMA, schema_errors.take_known(Run, plain, "", errors))
    try:
        OmegaConf.resolve(merged)
    except OmegaConfBaseException:
        from posttrain.config import schema_errors

        return None, [*errors, *schema_errors.unresolved(merged, plain, "")]
    missing = sorted(OmegaConf.missing_keys(merged))
    if merged.data.mix and not OmegaConf.select(merged, "data.path", throw_on_missing=False):
        merged.data.path = ""  # the parts have one each
        missing = [key for key in missing if key != "data.path"]
    if merged.job == "pipeline":
        for key in missing:  # trainer, model and data are in its stages
            OmegaConf.update(merged, key, "")
    elif missing:
        from posttrain.config import schema_errors

        return None, [*errors, *schema_errors.missing(merged, missing)]
    run = OmegaConf.to_object(merged)
    assert isinstance(run, Run)
    run.output_dir = os.path.expanduser(run.output_dir)  # a shell leaves the ~ of KEY=~/runs as it is
    if any(run.rewards.values()):
        from posttrain.config import reward_entries

        run.reward = reward_entries.read(run.reward, "reward", errors)
        run.probe.rewards = reward_entries.read(run.probe.rewards, "probe.rewards", errors)
        run.probe.gold = reward_entries.read(run.probe.gold, "probe.gold", errors)
    if run.job == "train" and run.peft.method == "lora" and (kind := trainers.find(run.trainer.kind)):
        from posttrain.config.own_options import lora_learning_rate

        run.trainer.args.setdefault("learning_rate", lora_learning_rate(kind))
    return run, errors


def origin(hydra_config: Any) -> Origin:
    """What Hydra knows of the running job."""
    task = hydra_config.overrides.task
    try:
        words = tuple(task)
    except OmegaConfBaseException:  # an interpolation that `read` reports
        words = tuple(str(word) for word in OmegaConf.to_container(task, resolve=False) or ())
    sweep = hydra_config.mode is not None and hydra_config.mode.name == "MULTIRUN"
    folder = Path(hydra_config.sweep.dir).absolute() if sweep else None
    return Origin(hydra_config.runtime.choices.get("recipe"), (*words, *own_folders(hydra_config)), folder)


def own_folders(hydra_config: Any) -> list[str]:
    """The word that finds the user's own config folders again: those of `--config-dir` and `hydra.searchpath`."""
    found = [one.path for one in hydra_config.runtime.config_sources if "command-line" in one.provider]
    return [f"hydra.searchpath={json.dumps([f'file://{Path(one).absolute()}' for one in found])}"] if found else []


def unread_settings(run: Run, overrides: Sequence[str]) -> list[str]:
    """Settings among `overrides` that the job, or full fine-tuning, does not read."""
    sections = {
        f"{name}.": f"job={run.job} does not read it; set job={name}, or leave it out"
        for name in ("sample", "evaluate", "doctor")
        if name in OTHER_JOBS.get(run.job, ())
    }
    if run.job == "train" and run.peft.method == "none":
        sections["peft.lora."] = "peft=none trains all weights; choose peft=lora, or leave it out"
    words = [word.lstrip("+") for word in overrides]
    return [f"{word}: {why}" for word in words for start, why in sections.items() if word.startswith(start)]
