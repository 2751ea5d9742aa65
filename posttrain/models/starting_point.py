"""The model that training begins with, from `model.path` or the run at `model.init_from`."""

from pathlib import Path

from posttrain.config.schema import Run
from posttrain.models.start import Start
from posttrain.runs.pretrained import pretrained_path


def start(run: Run) -> Start:
    """The starting point of `run`; raises `PosttrainError` where it does not fit the config, or is not whole."""
    if run.model.init_from is not None:
        from posttrain.models import inherit

        return inherit.start_from(run.model.init_from, run)
    where = pretrained_path(run.model.path)
    if Path(where).is_dir() and not run.model.path.startswith("embedded:"):
        from posttrain.models import local_folder

        local_folder.check(run, Path(where))
    return Start(where, where, where, run.model.revision)
