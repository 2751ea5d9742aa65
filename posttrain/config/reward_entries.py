"""The rewards of a config: OmegaConf cannot override a key of a dict of dataclasses that is not there."""

from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf

from posttrain.config.schema import RewardConfig
from posttrain.config.schema_errors import take_known


def read(entries: dict[str, Any], path: str, errors: list[str]) -> dict[str, RewardConfig]:
    """Reward entries, from `path` in the config, as `RewardConfig`s; what is wrong with them is added to `errors`."""
    result: dict[str, RewardConfig] = {}
    for name, entry in entries.items():
        if entry is None:  # taken out of what a group has: probe.gold.NAME=null
            continue
        if not isinstance(entry, dict):
            known = ", ".join(f.name for f in fields(RewardConfig))
            errors.append(f"{path}.{name}={entry!r}: expected keys {known}")
            continue
        before = len(errors)
        fit = take_known(RewardConfig, entry, f"{path}.{name}.", errors)
        if len(errors) == before:
            result[name] = RewardConfig(**OmegaConf.to_container(OmegaConf.merge(RewardConfig, fit)))  # type: ignore
    return result
