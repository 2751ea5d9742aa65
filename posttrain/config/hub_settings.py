"""Checks of the settings that only some sources have: names, revisions and splits of the hub, options of tasks."""

import glob
import os
from collections.abc import Iterator

from posttrain.config.data_override import BUILT_IN
from posttrain.config.schema import Run


def check(run: Run) -> Iterator[str]:
    """Revisions, names and splits of what is not on the hub, and options of data that has none."""
    of_hub = [
        ("model", "revision", run.model.revision, run.model.path),
        ("trainer.teacher", "revision", run.trainer.teacher.revision, run.trainer.teacher.model),
    ]
    for at, source in (("data", vars(run.data)), *((f"data.mix.{name}", one) for name, one in run.data.mix.items())):
        if not isinstance(source, dict):
            continue
        path, args, split, eval_split = map(source.get, ("path", "args", "split", "eval_split"))
        given = args if isinstance(args, dict) and not any(map(_built_in, (path, source.get("eval_path")))) else {}
        if path and (words := [f"{at}.args.{name}={value}" for name, value in given.items() if value is not None]):
            yield f"{', '.join(words)}: only embedded:squad and reasoning_gym:TASK have options; leave them out"
        if eval_split and not source.get("eval_path") and _without_splits(path):
            yield f"{at}.eval_split={eval_split}: {path} has no splits; leave it out, or set {at}.eval_path"
        if not path or (isinstance(path, str) and os.path.isdir(path)):
            if split not in (None, "train") and _without_splits(path):
                yield f"{at}.split={split}: {path} has no splits; leave it out"
            continue  # a folder may hold several data sets by name, and splits
        of_hub += [(at, name, source.get(name), path) for name in ("name", "revision")]
        if split not in (None, "train") and not (isinstance(path, str) and ":" in path):
            of_hub.append((at, "split", split, path))
    for at, name, value, path in of_hub:
        if value and not path:
            where = f"{at}.{'model' if 'teacher' in at else 'path'}"
            yield f"{at}.{name}={value}: there is no {where}; leave it out"
        elif value and _is_here(path):
            yield f"{at}.{name}={value}: {path} is no repository of the hub; leave it out"


def _built_in(path: object) -> bool:
    return str(path).startswith(BUILT_IN)


def _without_splits(path: object) -> bool:
    """Whether it names local files, or a folder with the one data set that `datasets` saved."""
    if not isinstance(path, str):
        return isinstance(path, list)
    local = os.path.expanduser(path)
    if os.path.isdir(local):
        return os.path.isfile(os.path.join(local, "state.json"))
    return os.path.exists(local) or bool(glob.glob(local))


def _is_here(path: object) -> bool:
    """Whether it is no id of the hub, but built in, generated, a local file or a folder."""
    if not isinstance(path, str):
        return True
    return ":" in path or path.startswith((".", "/", "~")) or os.path.exists(os.path.expanduser(path))
