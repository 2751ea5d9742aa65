"""Where weights come from: a model, or a finished run with its adapter, its base and its parents.

`source` says what a name stands for, `start` what a run's training begins with, so that no reference and no adapter is
ever put together by hand.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config import PeftConfig, Run
from posttrain.errors import PosttrainError
from posttrain.models import locate
from posttrain.rundir import RunDirectory, data_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Source:
    """Weights to start from or to use. `name` is how the user wrote it.

    `base` is the hub id or folder of the weights; `adapter` is the folder of the LoRA adapter on them, or `None`;
    `quantization` (BitsAndBytesConfig's options) and `dtype` are those the adapter was trained with ("auto" outside
    runs); `tokenizer` is where tokenizer and chat template lie; `run` is the run directory, where there is one.
    """

    name: str
    base: str
    tokenizer: str
    revision: str | None = None
    adapter: str | None = None
    quantization: dict[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    run: RunDirectory | None = None

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
        """Whether this is a reward model, which gives a text a score and says nothing."""
        if self.adapter:
            return _json(Path(self.adapter) / "adapter_config.json").get("task_type") == "SEQ_CLS"
        config = Path(self.base) / "config.json"
        names = _json(config).get("architectures") if config.is_file() else None
        return any(name.endswith("ForSequenceClassification") for name in names or [])


def source(path: str, revision: str | None = None, key: str = "RUN") -> Source:
    """What `path` names: a run directory, a folder (model or adapter), a hub id or an embedded model.

    Raises `PosttrainError`, its message beginning with `key`, for a run that is unfinished, has lost its files, or
    whose base is not there any more.
    """
    folder = Path(os.path.expanduser(path))
    if (folder / "run.json").is_file():
        return _of_run(RunDirectory(folder.absolute()), path, key)
    if (folder / "adapter_config.json").is_file():
        known = _json(folder / "adapter_config.json")
        base = _locate(known["base_model_name_or_path"], key)
        tokenizer = str(folder) if (folder / "tokenizer_config.json").is_file() else base
        return Source(path, base, tokenizer, known.get("revision"), str(folder))
    if path.startswith((".", "/", "~")) and not folder.is_dir():
        raise PosttrainError(f"{key}={path}: no such folder")
    where = _locate(path, key)
    return Source(path, where, where, revision)


def _locate(path: str, key: str) -> str:
    try:
        return locate(path)
    except KeyError:
        raise PosttrainError(f"{key}={path}: choose from embedded:smollm2, embedded:tiny") from None


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _of_run(run: RunDirectory, path: str, key: str) -> Source:
    record = run.record() or {}
    if (job := record.get("job", "train")) in ("sample", "evaluate"):
        raise PosttrainError(f"{key}={path}: a run of job={job} has no model")
    if not run.finished():
        raise PosttrainError(
            f"{key}={path}: this run is not finished; continue it with: {record.get('command', 'its command')}"
        )
    weights = "adapter_model.safetensors" if record.get("adapter") is not None else "config.json"
    if not (run.model / weights).is_file():
        raise PosttrainError(f"{key}={path}: model/{weights} is missing; was the folder moved in part?")
    if "base" not in record:
        raise PosttrainError(f"{key}={path}: its run.json does not say what it was trained on; train it again")
    if record.get("adapter") is None:
        return Source(path, str(run.model), str(run.model), dtype=record["base"]["dtype"], run=run)
    base = base_of(run, record, key)
    return Source(
        path,
        base,
        str(run.model),
        record["base"]["commit"] or record["base"]["revision"],
        str(run.model),
        record.get("quantization") or {},
        record["base"]["dtype"],
        run,
    )


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
    return locate(stored)


@dataclass(frozen=True)
class Start:
    """What training begins with: `adapter` is trained further, or a new one on the weights of `base`.

    `merge` is a parent whose adapter is first merged into the weights it was trained on; `base` is then the folder that
    they go to. `config` is where the model's config lies before that, `dtype` the type of the weights that an adapter
    goes on with. `note` says it in a line of the plan.
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


def start(run: Run) -> Start:
    """What `run` begins with; raises `PosttrainError` where `model.init_from` does not fit the rest of the config."""
    if run.model.init_from is None:
        where = locate(run.model.path)
        if (Path(where) / "adapter_config.json").is_file():
            raise PosttrainError(
                f"model.path={run.model.path}: an adapter, not a whole model; set model.init_from={run.model.path} to "
                "go on from that run, and leave model.path as it was there"
            )
        return Start(where, where, where, run.model.revision)
    parent = source(run.model.init_from, key="model.init_from")
    _check_parent(run, parent)
    if parent.adapter is None:
        note = f"the weights of {parent.run.name}" if parent.run else ""
        return Start(parent.base, parent.base, parent.tokenizer, parent=parent, note=note)
    name, why = parent.run.name if parent.run else parent.name, other_adapter(run.peft, parent)
    if why is None:
        note = f"the adapter of {name}; its frozen copy is the reference"
        return Start(
            parent.base,
            parent.base,
            parent.tokenizer,
            parent.revision,
            parent.dtype,
            parent.adapter,
            None,
            parent,
            note,
        )
    assert parent.run is not None
    merged = str(parent.run.path / "merged")
    note = f"{name} merged into the weights it was trained on ({why})"
    return Start(merged, parent.base, parent.tokenizer, merge=parent, parent=parent, note=note)


def _check_parent(run: Run, parent: Source) -> None:
    key, record = f"model.init_from={run.model.init_from}", parent.record
    if parent.run is None or record.get("job", "train") != "train":
        raise PosttrainError(f"{key}: not the run directory of a training run; for a model set model.path")
    if record["trainer"] == "reward" and run.trainer.kind != "reward":
        raise PosttrainError(
            f"{key}: a reward model, which {run.trainer.kind} cannot train further; give it as a reward: reward=rm "
            "reward.rm.model=RUN"
        )
    theirs = record["model"]
    if (run.model.path, run.model.revision) != (theirs["path"], theirs["revision"]):
        ours = run.model.path + (f" at {run.model.revision}" if run.model.revision else "")
        revision = f" model.revision={theirs['revision']}" if theirs["revision"] else ""
        raise PosttrainError(
            f"model.path={ours}: {key} was trained from another base; set model.path={theirs['path']}{revision}"
        )


def other_adapter(peft: PeftConfig, parent: Source) -> str | None:
    """Why the parent's adapter cannot go on as this run's; `None` where it can."""
    if peft.method == "none":
        return "full fine-tuning"
    if peft.quantization != parent.quantization:
        return f"trained on {_bits(parent.quantization)} weights, now {_bits(peft.quantization)}"
    before = parent.record["adapter"]
    for option in sorted({*peft.lora, *before}):
        if peft.lora.get(option) != before.get(option):
            return f"a new adapter: {option}={peft.lora.get(option)}, was {before.get(option)}"
    return None


def _bits(quantization: dict[str, Any]) -> str:
    return "4-bit" if quantization.get("load_in_4bit") else "8-bit" if quantization else "unquantized"


def check_tokenizer(run: Run, begin: Start, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `PosttrainError` where template or special tokens differ from those that the parent was trained with."""
    if begin.parent is None:
        return
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(begin.parent.tokenizer)
    for key in ("chat_template", "eos_token", "pad_token"):
        if getattr(tokenizer, key) != getattr(theirs, key):
            raise PosttrainError(
                f"model.{key}={getattr(run.model, key)}: model.init_from={run.model.init_from} was trained with "
                f"another; leave model.{key} out"
            )


def parents(run: Run, begin: Start) -> list[dict[str, Any]]:
    """The runs that this one is made from, for its `run.json`: role, path and the digest of the weights."""
    found = [("policy", run.model.init_from)] if begin.parent else []
    found += [(f"reward.{name}", entry.model) for name, entry in run.reward.items()]
    found += [("data", run.data.path)] if data_file(run.data.path) != run.data.path else []
    return [parent(role, path) for role, path in found if path is not None]


def parent(role: str, path: str) -> dict[str, Any]:
    """A row of `parents`; name and content of a run."""
    record = RunDirectory(Path(os.path.expanduser(path)).absolute()).record() or {}
    return {"role": role, "path": path, "name": record.get("name"), "content": record.get("content")}


def base_record(run: Run, begin: Start, directory: Path, dtype: str) -> dict[str, Any]:
    """The weights that training begins with, for `run.json`; a local folder is kept relative to the run directory."""
    known = begin.parent.record["base"] if begin.parent and begin.adapter else None
    if known is not None and not known["local"]:
        return {**known, "dtype": dtype}
    if begin.parent is not None or (Path(begin.base).is_dir() and not run.model.path.startswith("embedded:")):
        return {
            "path": os.path.relpath(begin.base, directory),
            "local": True,
            "revision": None,
            "commit": None,
            "dtype": dtype,
        }
    from posttrain import hub

    commit = hub.commit(run.model.path, run.model.revision)
    return {"path": run.model.path, "local": False, "revision": run.model.revision, "commit": commit, "dtype": dtype}


def put_adapter(model: Any, adapter: str) -> None:
    """Load the parent's adapter into the policy and, where there is one, into its frozen reference, bit for bit.

    TRL rounds a quantized model's adapter to bfloat16 on the way, which would move the policy off its reference.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(str(Path(adapter) / "adapter_model.safetensors"))
    for name in ("default", "ref"):
        if name in model.peft_config:
            own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
            # A reward model that goes on from a policy has a new head, which the policy's adapter knows nothing of.
            wrong = [key for key in {*own} ^ {*weights} if ".score." not in key]
            if wrong:
                raise PosttrainError(f"{adapter}: its weights do not fit the model, e.g. {sorted(wrong)[0]}")
            set_peft_model_state_dict(model, {**own, **weights}, adapter_name=name)


def add_reference(model: Any) -> None:
    """A frozen copy of the policy's adapter named `ref`, as TRL makes for DPO, where the trainer needs none itself."""
    if "ref" not in model.peft_config:
        model.add_adapter("ref", model.peft_config["default"])
        model.set_adapter("default")


def load(origin: Source, device: str | None = None, dtype: str | None = None) -> Any:
    """The model of `origin` in evaluation mode, a reward model with its score head: a `PeftModel`, or a plain one.

    Loaded as it was trained: base in the run's type and quantization, the adapter in float32.
    """
    from peft import PeftModel

    model = load_base(origin, device, dtype)
    if origin.adapter:
        model = PeftModel.from_pretrained(model, origin.adapter)
    return model.eval()


def load_base(origin: Source, device: str | None = None, dtype: str | None = None) -> Any:
    """The weights under the adapter of `origin`, quantized as it says; raises `PosttrainError` where they are not."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from posttrain import hub
    from posttrain.config import PeftConfig
    from posttrain.models import quantization_config

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kwargs: dict[str, Any] = {"dtype": dtype or origin.dtype, "revision": origin.revision, "use_safetensors": True}
    if origin.quantization:
        kwargs["quantization_config"] = quantization_config(PeftConfig(quantization=origin.quantization))
        kwargs["device_map"] = where
    auto: Any = AutoModelForCausalLM
    if origin.scores:
        auto, kwargs["num_labels"] = AutoModelForSequenceClassification, 1
    try:
        model = auto.from_pretrained(origin.base, **kwargs)
    except (OSError, ValueError) as error:
        of = "no such run or folder; as a hub id" if origin.base == origin.name else f"its base {origin.base}"
        of = "" if Path(origin.name).is_dir() and not origin.adapter else f"{of}: "
        why = hub.explain(error, origin.base, "model") or f"cannot be loaded: {str(error).splitlines()[0]}"
        raise PosttrainError(f"RUN={origin.name}: {of}{why}") from error
    return model.eval() if origin.quantization else model.to(where).eval()
