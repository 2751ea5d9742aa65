"""The starting point of a training, and its record for `run.json`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.schema import Run
from posttrain.data.sampled import sampled_runs

if TYPE_CHECKING:
    from posttrain.runs.lineage import Source


@dataclass(frozen=True)
class Start:
    """The starting point of a training: `adapter` is trained further, or a new one on the weights of `base`.

    `merge` is a parent whose adapter is first merged into the weights it was trained on; `base` is then the folder of
    the merged weights. `config` is the place of the model's config before the merge, `dtype` the type of the weights
    under the adapter. `note` is the line in the plan.
    """

    base: str
    config: str
    tokenizer: str
    revision: str | None = None
    dtype: str | None = None
    adapter: str | None = None
    merge: Source | None = None
    parent: Source | None = None
    note: str = ""


def parents(run: Run, begin: Start) -> list[dict[str, Any]]:
    """The runs that this one is made from, for its `run.json`: role, path and the digest of the weights."""
    found = [("policy", run.model.init_from)] if begin.parent else []
    found += [(f"reward.{name}", model) for name, entry in run.reward.items() for model in entry.models]
    found += [("teacher", run.trainer.teacher.model)]
    found += [("data", path) for path in sampled_runs(run.data)]
    given = [(role, path) for role, path in found if path is not None]
    if not given:
        return []
    from posttrain.runs.lineage import parent_entry

    return [parent_entry(role, path) for role, path in given]


def base_record(run: Run, begin: Start, directory: Path, dtype: str) -> dict[str, Any]:
    """The weights that training begins with, for `run.json`; a local folder is kept relative to the run directory."""
    known = begin.parent.record["base"] if begin.parent and begin.adapter else None
    if known is not None and not known["local"]:
        return {**known, "dtype": dtype}
    local = begin.parent is not None or (Path(begin.base).is_dir() and not run.model.path.startswith("embedded:"))
    path = os.path.relpath(begin.base, directory) if local else run.model.path
    revision, commit = (None, None) if local else (run.model.revision, model_commit(run))
    return {"path": path, "local": local, "revision": revision, "commit": commit, "dtype": dtype}


def model_commit(run: Run) -> str | None:
    """The commit of `model.path` on the hub; `None` for an embedded model or a folder."""
    if run.model.path.startswith("embedded:"):
        return None
    from posttrain import hub

    return hub.cached_commit(run.model.path, run.model.revision)
