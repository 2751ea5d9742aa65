"""Merging an adapter into the weights that it was trained on, with a measurement of the loss.

A QLoRA adapter compensates the rounding of its 4-bit base. So the adapter is merged into the dequantized base; in the
original weights it would correct errors that are not there. Merging rounds the weights once more, to the output's type.
So the next-token distributions of the adapter on its base and of the saved folder are compared.
"""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from posttrain.console import console
from posttrain.data.atomic_folder import atomic_folder, folder_lock
from posttrain.errors import PosttrainError
from posttrain.models.drift import Drift, ReferenceOutputs, held_out
from posttrain.models.weights import free_memory, load, load_base, saved_tokenizer
from posttrain.runs import export_card
from posttrain.runs.content import content, files_digest
from posttrain.runs.lineage import Source

# Mean KL in nats per position. In bfloat16 a right merge costs 0.002 to 0.006 on a 135M model, most of it because two
# computations in bfloat16 never agree; another base, or the adapter lost, costs 0.2 and more (docs/export.md).
MAX_KL = 0.02
# Mean difference in score: sigmoid's slope is at most 1/4, so a preference probability moves by at most 0.025.
MAX_SCORE = 0.1
MARKER = "export.json"


def merge(
    source: Source,
    folder: Path,
    dtype: str | None = None,
    prompts: list[Any] | None = None,
    threshold: float | None = None,
    into: str = "trained",
) -> Drift:
    """Write `source`, merged and verified, to `folder`; an equal export that is already there is only reported.

    `dtype` is the type of the saved weights, else the one that the base was trained in. `prompts` are texts or lists
    of messages, else the run's held-out ones. `into` is "trained" (the weights as the adapter knew them) or "original"
    (a quantized base in full precision). Raises `PosttrainError` where there is nothing to merge, `folder` holds
    something else, or the mean drift exceeds `threshold` (`MAX_KL`, for a reward model `MAX_SCORE`); the result is then
    deleted.
    """
    if source.adapter is None:
        raise PosttrainError(f"{source.name}: has no adapter, so there is nothing to merge; its weights are whole")
    limit = threshold if threshold is not None else MAX_SCORE if source.scores else MAX_KL
    wanted = {"form": "merged", **identity(source), "dtype": dtype or source.dtype, "into": into}
    with folder_lock(folder):
        if found := find_existing(folder, wanted):
            drift = Drift(**found["drift"])
            _check_drift(drift, limit, dtype, f"{folder} was made with a larger --max-kl")
            return drift
        with atomic_folder(folder) as temporary:
            drift = _merge(source, temporary, dtype, prompts or held_out(source), into, limit)
            write_marker(temporary, wanted, drift)
            export_card.describe(temporary, source, drift.describe())
    return drift


def merge_parent(source: Source, folder: Path) -> dict[str, Any]:
    """`merge` of a run's parent, as the base of a new adapter; returns the drift, for `run.json`.

    Runs of one parent share the result.
    """
    try:
        drift = merge(source, folder)
    except PosttrainError as error:
        raise PosttrainError(
            f"model.init_from={source.name}: {str(error).split('. Allowed')[0]}; train on with the parent's own "
            "peft.lora and quantization, which needs no merge"
        ) from error
    console.print("merged   " + "; ".join(drift.describe()))
    return asdict(drift)


def identity(source: Source) -> dict[str, Any]:
    """What identifies the source of an export, equal on every machine."""
    weights = Path(source.adapter or source.base)
    digest = files_digest(list(weights.glob("*.safetensors")))
    local = source.base_name == source.base and Path(source.base).is_dir()
    base = content(Path(source.base)) if local else source.base_name
    return {"base": base, "revision": source.revision, "weights": digest}


def write_marker(folder: Path, made: dict[str, Any], drift: Drift | None = None) -> None:
    """Record in the folder what it was made from, for `find_existing`."""
    record = {"made": made, **({"drift": asdict(drift)} if drift else {})}
    (folder / MARKER).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def find_existing(folder: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the export `wanted` in `folder`; `None` if there is no folder, or an empty one; else an error."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        record = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        made = dict(record["made"])
    except (OSError, ValueError, TypeError, KeyError):  # none, or damaged
        record, made = {}, {}
    if made == wanted:
        return record
    other = [f"{key} {made[key]}, now {wanted[key]}" for key in wanted if made and made.get(key) != wanted[key]]
    what = f"holds another export ({'; '.join(other)})" if other else "is not empty"
    raise PosttrainError(f"--out={folder}: {what}, and nothing is overwritten; choose another, or remove it")


def _merge(source: Source, temporary: Path, dtype: str | None, prompts: list[Any], into: str, limit: float) -> Drift:
    """One model in memory at a time: first the reference's outputs, then the merged model's, read back from disk."""
    tokenizer = saved_tokenizer(source)
    reference = load(source)
    dtype = dtype or str(reference.dtype).removeprefix("torch.")
    reference_outputs = ReferenceOutputs(reference, tokenizer, prompts, source.scores)
    del reference
    free_memory()

    quantized = bool(source.quantization) and into == "trained"
    original = replace(source, quantization={})
    merged = merged_model(source if quantized else original, dtype)
    _check_disk_space(temporary, merged)
    save(merged, tokenizer, temporary)
    del merged
    free_memory()

    drift = reference_outputs.drift(load_base(Source(source.name, str(temporary), str(temporary))))
    free_memory()
    _check_drift(drift, limit, dtype, "nothing was kept")
    if quantized:
        drift = replace(drift, original=float(reference_outputs.distances(merged_model(original, dtype)).mean()))
    return drift


def merged_model(source: Source, dtype: str) -> Any:
    """`source` as a plain model: its (dequantized) base with the adapter added, rounded once, to `dtype`."""
    import torch
    from peft import PeftModel

    base = load_base(source)
    own = base.dtype
    if source.quantization:
        base = base.dequantize()
    output = getattr(torch, dtype)
    # Added in the wider of the two types, so that only the sum is rounded.
    model = PeftModel.from_pretrained(base.to(torch.promote_types(own, output)), str(source.adapter))
    return model.merge_and_unload().to(output).eval()


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Weights, tokenizer with chat template, and a generation config that stops where the tokenizer says."""
    text = model.config.get_text_config()
    text.pad_token_id = tokenizer.pad_token_id  # where a reward model looks for the end of a text
    if model.can_generate():
        set_stop_tokens(model.generation_config, tokenizer)
        text.eos_token_id = model.generation_config.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def set_stop_tokens(generation: Any, tokenizer: Any) -> None:
    """Make a generation config end at the tokenizer's EOS, besides its own, and pad with its padding."""
    known = generation.eos_token_id
    known = known if isinstance(known, list) else [known]
    # Transformers takes the first for the one to report.
    ends = dict.fromkeys(token for token in (tokenizer.eos_token_id, *known) if token is not None)
    generation.eos_token_id = list(ends) if len(ends) > 1 else next(iter(ends), None)
    if tokenizer.pad_token_id is not None:
        generation.pad_token_id = tokenizer.pad_token_id


def _check_drift(drift: Drift, limit: float, dtype: str | None, state: str) -> None:
    if drift.mean <= limit:  # False for nan, too
        return
    wider = "" if dtype == "float32" else "--dtype float32 rounds less; "
    option = f"--max-kl {drift.mean * 1.1:.2g} accepts it" if drift.mean == drift.mean else "no limit accepts it"
    raise PosttrainError(
        f"the merged model is not the adapter on its base: {'; '.join(drift.describe())}. Allowed is a mean of "
        f"{limit:g}, and {state}; {wider}{option}"
    )


def _check_disk_space(folder: Path, model: Any) -> None:
    needed = sum(p.nbytes for p in model.parameters())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PosttrainError(f"--out={folder.parent}: {free / 1e9:.1f} GB free, and it takes {needed / 1e9:.1f} GB")
