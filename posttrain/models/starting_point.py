"""The model that training begins with, from `model.path` or the run at `model.init_from`."""

from pathlib import Path

from posttrain.config.schema import Run
from posttrain.errors import PosttrainError
from posttrain.models.start import Start
from posttrain.runs.pretrained import pretrained_path


def start(run: Run) -> Start:
    """The starting point of `run`; raises `PosttrainError` where `model.init_from` does not fit the config."""
    if run.model.init_from is not None:
        from posttrain.models import inherit

        return inherit.start_from(run.model.init_from, run)
    where = pretrained_path(run.model.path)
    if (Path(where) / "adapter_config.json").is_file():
        raise PosttrainError(
            f"model.path={run.model.path}: an adapter, not a whole model; set model.init_from={run.model.path} to "
            "start from that run, and leave model.path as it was there"
        )
    return Start(where, where, where, run.model.revision)
