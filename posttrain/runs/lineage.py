"""The origin of weights: a model, or a finished run with its adapter and its base."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.config.suggestions import near_path
from posttrain.errors import PosttrainError
from posttrain.runs import damage
from posttrain.runs.directory import RunDirectory
from posttrain.runs.pretrained import check_trained, pretrained_path

PICKLES = ("adapter_model*.bin", "pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Source:
    """Weights to start from or to use. `name` is how the user wrote it.

    `base` is the hub id or folder of the weights; `adapter` is the folder of the LoRA adapter on them, or `None`;
    `quantization` (BitsAndBytesConfig's options) and `dtype` are those the adapter was trained with ("auto" outside
    runs); `tokenizer` is where tokenizer and chat template lie; `run` is the run directory, where there is one.
    `options` are what else `from_pretrained` gets (`trust_remote_code`, `attn_implementation`).
    """

    name: str
    base: str
    tokenizer: str
    revision: str | None = None
    adapter: str | None = None
    quantization: dict[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    run: RunDirectory | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """`run.json` of the run; empty for what is no run."""
        return (self.run.record() or {}) if self.run else {}

    @property
    def base_name(self) -> str:
        """The base as other machines may know it: hub id or embedded name; a folder's path where it is local."""
        known = self.record.get("base")
        return known["path"] if known and not known["local"] else self.base

    @property
    def scores(self) -> bool:
        """Whether this is a reward model, which scores texts and does not generate."""
        if self.adapter:
            return _json(Path(self.adapter) / "adapter_config.json").get("task_type") == "SEQ_CLS"
        config = Path(self.base) / "config.json"
        names = _json(config).get("architectures") if config.is_file() else None
        return any(name.endswith("ForSequenceClassification") for name in names or [])


def source(path: str, revision: str | None = None, key: str = "RUN") -> Source:
    """The weights at `path`: a run directory, a folder (model or adapter), a hub id or an embedded model.

    Raises `PosttrainError`, its message beginning with `key`, for a run that is unfinished, has lost its files, or
    whose base is not there any more.
    """
    folder = Path(os.path.expanduser(path))
    if folder.is_file():
        raise PosttrainError(f"{key}={path}: is a file; give the folder of a run or of a model")
    _no_pickle(folder, f"{key}={path}")
    if (folder / "run.json").is_file():
        return _of_run(RunDirectory(folder.absolute()), path, key)
    if (folder / "adapter_config.json").is_file():
        known = _json(folder / "adapter_config.json")
        if not known.get("base_model_name_or_path"):
            raise PosttrainError(f"{key}={path}: adapter_config.json has no base_model_name_or_path; set it there")
        base = _locate(known["base_model_name_or_path"], key)
        tokenizer = str(folder) if (folder / "tokenizer_config.json").is_file() else base
        return Source(path, base, tokenizer, known.get("revision"), str(folder))
    # What lies among runs is no hub id.
    local = path.startswith((".", "/", "~")) or (not path.startswith("embedded:") and runs_in(folder.parent))
    if local and not folder.is_dir():
        raise PosttrainError(f"{key}={path}: no such run or folder{near_path(path)}")
    if (runs := runs_in(folder)) and not (folder / "config.json").is_file():
        raise PosttrainError(f"{key}={path}: a folder of runs; name one, such as {runs[-1]}")
    where = _locate(path, key)
    return Source(path, where, where, revision)


def runs_in(folder: Path) -> list[Path]:
    """The run directories in a folder, by their start; the latest is the last."""
    return sorted((found.parent for found in folder.glob("*/run.json")), key=lambda run: run.stat().st_ctime)


def _no_pickle(folder: Path, start: str) -> None:
    """Raise `PosttrainError` for a local folder, or the `model/` of a run, whose weights are pickles alone."""
    for place in (folder, folder / "model"):
        pickles = sorted(p.name for pattern in PICKLES for p in place.glob(pattern))
        if pickles and not any(place.glob("*.safetensors")):
            raise PosttrainError(
                f"{start}: {pickles[0]} is a pickle, which can run code when it is opened, and is not read; where you "
                "trust it, load it elsewhere and save it with save_pretrained, which writes safetensors"
            )


def _locate(path: str, key: str) -> str:
    try:
        return pretrained_path(path)
    except KeyError:
        raise PosttrainError(f"{key}={path}: choose from embedded:smollm2, embedded:tiny") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise PosttrainError(f"{path}: is damaged ({error}); restore it, or copy the folder again") from error


def _of_run(run: RunDirectory, path: str, key: str) -> Source:
    record = check_trained(run, f"{key}={path}")
    weights = "adapter_model.safetensors" if record.get("adapter") is not None else "config.json"
    if not (run.model / weights).is_file():
        raise PosttrainError(f"{key}={path}: model/{weights} is missing; was the folder moved in part?")
    if why := damage.weights(run.model):
        raise PosttrainError(f"{key}={path}: model/{why}; restore it, or copy the folder again")
    if not {"path", "local", "revision", "commit", "dtype"} <= set(record.get("base") or ()):
        raise PosttrainError(f"{key}={path}: its run.json does not say what it was trained on; train it again")
    if record.get("adapter") is None:
        return Source(path, str(run.model), str(run.model), dtype=record["base"]["dtype"], run=run)
    base, stored, folder = base_of(run, record, key), record["base"], str(run.model)
    revision, quantization = stored["commit"] or stored["revision"], record.get("quantization") or {}
    return Source(path, base, folder, revision, folder, quantization, stored["dtype"], run)


def base_of(run: RunDirectory, record: dict[str, Any], key: str) -> str:
    """Hub id or folder of the weights under the run's adapter; a local one is kept relative to the run directory."""
    stored = record["base"]["path"]
    if record["base"]["local"]:
        folder = (run.path / stored).resolve()
        if not folder.is_dir():
            raise PosttrainError(
                f"{key}={run.path}: was trained on {folder}, which is not there any more; put it back, or move the run "
                "together with it"
            )
        return str(folder)
    return pretrained_path(stored)


def parent_entry(role: str, path: str) -> dict[str, Any]:
    """An entry of `parents` in `run.json`: role and path of a run, its name, and the digest of its content."""
    record = RunDirectory(Path(os.path.expanduser(path)).absolute()).record() or {}
    return {"role": role, "path": path, "name": record.get("name"), "content": record.get("content")}


def weights_location(origin: Source) -> str:
    """Where the weights are: a folder, or a hub id at the commit that is cached."""
    from posttrain import hub

    if Path(origin.base).is_dir():
        return str(Path(origin.base).resolve())
    return f"{origin.base}@{hub.cached_commit(origin.base, origin.revision) or origin.revision}"
