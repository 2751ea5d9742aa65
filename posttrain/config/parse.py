"""From Hydra's composed config to a checked `Run`; imports nothing heavy."""

from __future__ import annotations

import difflib
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from posttrain.config.schema import Origin, RewardConfig, Run
from posttrain.errors import PosttrainError


def parse(cfg: DictConfig) -> Run:
    """Hydra's config as a `Run`; raises `PosttrainError` for unknown keys, wrong types and missing values."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    schema = OmegaConf.structured(Run)
    try:
        # `+key=value` on the command line bypasses the schema, so merge once more from plain values.
        merged = OmegaConf.merge(schema, plain)
        OmegaConf.resolve(merged)
        missing = sorted(OmegaConf.missing_keys(merged))
    except ConfigKeyError as error:
        raise PosttrainError(unknown_key(str(error.full_key))) from None
    except OmegaConfBaseException as error:
        raise PosttrainError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from None
    if merged.data.mix and not OmegaConf.select(merged, "data.path", throw_on_missing=False):
        merged.data.path = ""  # the parts have one each
        missing = [key for key in missing if key != "data.path"]
    if merged.job == "pipeline":
        for key in missing:  # trainer, model and data stand in its stages
            OmegaConf.update(merged, key, "")
    elif missing and merged.stages:
        raise PosttrainError(_pipeline(merged))
    elif missing:
        lines = [f"{key}: required, and not set; {_mend_missing(key)}" for key in missing]
        raise PosttrainError("\n".join(lines))
    run = OmegaConf.to_object(merged)
    assert isinstance(run, Run)
    run.reward = _rewards(run.reward, "reward")
    run.probe.rewards = _rewards(run.probe.rewards, "probe.rewards")
    run.probe.gold = _rewards(run.probe.gold, "probe.gold")
    return run


def _rewards(entries: dict[str, Any], path: str) -> dict[str, RewardConfig]:
    """Reward entries as `RewardConfig`s: OmegaConf cannot override a key of a dict of dataclasses that is not there."""
    result: dict[str, RewardConfig] = {}
    known = [f.name for f in fields(RewardConfig)]
    for name, entry in entries.items():
        if entry is None:  # taken out of what a group has: probe.gold.NAME=null
            continue
        if not isinstance(entry, dict):
            raise PosttrainError(f"{path}.{name}={entry!r}: expected keys {', '.join(known)}")
        if unknown := [key for key in entry if key not in known]:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            mend = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            raise PosttrainError(f"{path}.{name}.{unknown[0]}: unknown key; {mend}")
        try:
            result[name] = RewardConfig(**OmegaConf.to_container(OmegaConf.merge(RewardConfig, entry)))  # type: ignore
        except OmegaConfBaseException as error:
            raise PosttrainError(f"{path}.{name}.{error.full_key}: {str(error).splitlines()[0]}") from None
    return result


def origin(hydra_config: Any) -> Origin:
    """What Hydra knows of the running job."""
    sweep = hydra_config.mode is not None and hydra_config.mode.name == "MULTIRUN"
    return Origin(
        recipe=hydra_config.runtime.choices.get("recipe"),
        overrides=tuple(hydra_config.overrides.task),
        sweep_dir=Path(hydra_config.sweep.dir).absolute() if sweep else None,
    )


def unknown_key(key: str) -> str:
    """What to say of a key that the schema does not have."""
    parent, _, name = key.rpartition(".")
    cls: Any = Run
    for part in filter(None, parent.split(".")):
        cls = next((f.default_factory for f in fields(cls) if f.name == part), None)
    known = [f.name for f in fields(cls)] if isinstance(cls, type) and cls is not dict else []
    near = difflib.get_close_matches(name, known, n=2)
    mend = f"did you mean {' or '.join(near)}?" if near else f"known here: {', '.join(known)}"
    return f"{key}: unknown key; {mend}"


def _pipeline(merged: Any) -> str:
    """What to say of a pipeline that another job was asked of."""
    stages = [stage for stage in merged.stages.values() if isinstance(stage, DictConfig)]
    recipes = dict.fromkeys(stage.recipe for stage in stages if stage.get("recipe"))
    taken = ", ".join(f"+recipe={name}" for name in recipes)
    return f"job={merged.job}: this is a pipeline, of {', '.join(merged.stages)}; take the recipe of one stage: {taken}"


def _mend_missing(key: str) -> str:
    if key == "trainer.kind":
        return "choose +recipe=NAME, or trainer=sft|reward|dpo|grpo|rloo|kto|ppo (see --help)"
    return {
        "model.path": "choose +recipe=NAME or model=NAME, or set model.path=HUB_ID_OR_FOLDER",
        "data.path": "choose +recipe=NAME or data=NAME, or set data.path=HUB_ID_OR_FILE",
    }.get(key, f"set {key}=VALUE")
