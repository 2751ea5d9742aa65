"""Starting from the run at `model.init_from`: its adapter or weights, and the reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import PeftConfig, Run
from posttrain.errors import PosttrainError
from posttrain.models.start import Start
from posttrain.runs import lineage
from posttrain.runs.lineage import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def start_from(path: str, run: Run) -> Start:
    """The starting point of `run` from the run at `path`; raises `PosttrainError` where it does not fit the config."""
    parent = lineage.source(path, key="model.init_from")
    _check_parent(run, parent)
    if parent.adapter is None:
        note = f"the weights of {parent.run.name}" if parent.run else ""
        return Start(parent.base, parent.base, parent.tokenizer, parent=parent, note=note)
    name, why = parent.run.name if parent.run else parent.name, adapter_difference(run.peft, parent)
    if why is None and trainers.of(run.trainer.kind).base_reference:
        why = f"the reference of {run.trainer.kind} is the model without an adapter"
    if why is None:
        note = f"the adapter of {name}; its frozen copy is the reference"
        whole = (parent.base, parent.base, parent.tokenizer, parent.revision, parent.dtype)
        return Start(*whole, adapter=parent.adapter, parent=parent, note=note)
    assert parent.run is not None
    merged = str(parent.run.path / "base")  # not merged/, which is the user's own export
    note = f"{name} merged into the weights it was trained on ({why})"
    return Start(merged, parent.base, parent.tokenizer, merge=parent, parent=parent, note=note)


def _check_parent(run: Run, parent: Source) -> None:
    key, record = f"model.init_from={run.model.init_from}", parent.record
    if parent.run is None or record.get("job", "train") != "train":
        raise PosttrainError(f"{key}: not the run directory of a training run; for a model set model.path")
    if parent.scores and not trainers.of(run.trainer.kind).scores:
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


def adapter_difference(peft: PeftConfig, parent: Source) -> str | None:
    """Why the parent's adapter cannot continue as this run's; `None` where it can."""
    if peft.method == "none":
        return "full fine-tuning"
    if peft.quantization != parent.quantization:
        return f"trained on {_bits(parent.quantization)} weights, now {_bits(peft.quantization)}"
    now, before = _options(peft.lora), _options(parent.record["adapter"])
    changed = next((option for option in now if now[option] != before[option]), None)
    return changed and f"a new adapter: {changed}={now[changed]}, was {before[changed]}"


def _options(lora: dict[str, Any]) -> dict[str, Any]:
    """All of LoraConfig's options with their defaults, and module names sorted, since their order has no meaning."""
    from peft import LoraConfig

    known = LoraConfig(**lora).to_dict()
    return {name: sorted(v) if isinstance(v, (list, set)) else v for name, v in known.items()}


def _bits(quantization: dict[str, Any]) -> str:
    return "4-bit" if quantization.get("load_in_4bit") else "8-bit" if quantization else "unquantized"


def check_tokenizer(run: Run, begin: Start, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `PosttrainError` where template or special tokens differ from those that the parent was trained with."""
    from transformers import AutoTokenizer

    assert begin.parent is not None
    theirs = AutoTokenizer.from_pretrained(begin.parent.tokenizer, trust_remote_code=run.model.trust_remote_code)
    for key in ("chat_template", "eos_token", "pad_token"):
        if getattr(tokenizer, key) != getattr(theirs, key):
            raise PosttrainError(
                f"model.{key}={getattr(run.model, key)}: model.init_from={run.model.init_from} was trained with "
                f"another; leave model.{key} out"
            )


def load_parent_adapter(model: Any, adapter: str) -> None:
    """Load the parent's adapter into the policy and, where there is one, into its frozen reference, bit for bit.

    TRL rounds a quantized model's adapter to bfloat16 on the way, which would move the policy off its reference.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(str(Path(adapter) / "adapter_model.safetensors"))
    # PEFT also saves frozen embeddings that carry an adapter.
    weights = {key: value for key, value in saved.items() if ".base_layer." not in key}
    for name in ("default", "ref"):
        if name in model.peft_config:
            own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
            # A reward model trained from a policy has a new head, which is not in the policy's adapter.
            wrong = [key for key in {*own} ^ {*weights} if ".score." not in key]
            if wrong:
                raise PosttrainError(f"{adapter}: its weights do not fit the model, e.g. {sorted(wrong)[0]}")
            set_peft_model_state_dict(model, {**own, **weights}, adapter_name=name)


def add_reference_adapter(model: Any) -> None:
    """Add a frozen copy of the policy's adapter, named `ref`, as TRL does for DPO, unless it exists."""
    if "ref" not in model.peft_config:
        model.add_adapter("ref", model.peft_config["default"])
        model.set_adapter("default")
