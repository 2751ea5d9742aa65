"""The composed config that a run keeps."""

from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from posttrain.errors import PosttrainError, first_line


def load(folder: Path) -> DictConfig:
    """The `config.yaml` of the run in `folder`; raises `PosttrainError` where it is missing or damaged."""
    path = folder / "config.yaml"
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        why = error.strerror if isinstance(error, OSError) else f"is damaged ({first_line(error)})"
        raise PosttrainError(f"{path}: {why}; restore it, or train the run again") from error
    if not isinstance(config, DictConfig) or not config:
        raise PosttrainError(f"{path}: is damaged (it holds no settings); restore it, or train the run again")
    return config
