"""Model, tokenizer, precision and adapter of a run, as TRL's trainers take them."""

from pathlib import Path
from typing import Any

from posttrain.config.schema import PeftConfig
from posttrain.errors import PosttrainError
from posttrain.runs.lineage import Source


def tokenizer(origin: Source) -> Any:
    """The tokenizer of the weights, with a token to pad with."""
    found = saved_tokenizer(origin)
    if found.pad_token_id is None:
        found.pad_token = found.eos_token
    return found


def saved_tokenizer(origin: Source) -> Any:
    """The tokenizer of the weights; raises `PosttrainError` if it cannot be loaded."""
    from transformers import AutoTokenizer

    from posttrain import hub

    try:
        return AutoTokenizer.from_pretrained(
            origin.tokenizer,
            revision=None if origin.run else origin.revision,
            trust_remote_code=origin.options.get("trust_remote_code", False),
        )
    except Exception as error:  # each kind of tokenizer has its own
        why = hub.cannot_load(error, origin.tokenizer)
        raise PosttrainError(f"RUN={origin.name}: its tokenizer {origin.tokenizer}: {why}") from error


def check_model(origin: Source, key: str, scores: bool) -> int | None:
    """Raise `PosttrainError` unless `origin` is a reward model (`scores`) or one that generates; the context length."""
    from transformers import AutoConfig

    from posttrain import hub

    try:
        trust = origin.options.get("trust_remote_code", False)
        known = AutoConfig.from_pretrained(origin.base, revision=origin.revision, trust_remote_code=trust)
    except Exception as error:
        raise PosttrainError(f"{key}={origin.name}: {hub.cannot_load(error, origin.base)}") from error
    if is_reward_model(origin, known) and not scores:
        raise PosttrainError(
            f"{key}={origin.name}: a reward model, which generates no text; give it as reward.rm.model"
        )
    if scores and not is_reward_model(origin, known):
        raise PosttrainError(f"{key}={origin.name}: not a reward model; train one with trainer=reward")
    if scores and not origin.adapter and known.num_labels != 1:
        raise PosttrainError(f"{key}={origin.name}: has {known.num_labels} outputs, and a reward has one")
    return getattr(known.get_text_config(), "max_position_embeddings", None)


def is_reward_model(origin: Source, known: Any) -> bool:
    """Whether `origin`, with the config `known`, scores text."""
    if origin.adapter:
        return origin.scores
    return any("SequenceClassification" in name for name in known.architectures or ())


def load(origin: Source, device: str | None = None, dtype: str | None = None, scores: bool | None = None) -> Any:
    """The model of `origin` in evaluation mode, a reward model with its score head: a `PeftModel`, or a plain one.

    Loaded as it was trained: base in the run's type and quantization, the adapter in float32. `scores` says that it is
    a reward model; None reads this from local files, which a model on the hub does not have.
    """
    from peft import PeftModel

    model = load_base(origin, device, dtype, scores)
    if origin.adapter:
        model = PeftModel.from_pretrained(model, origin.adapter)
    return model.eval()


def load_base(origin: Source, device: str | None = None, dtype: str | None = None, scores: bool | None = None) -> Any:
    """The weights under the adapter of `origin`, with its quantization; raises `PosttrainError` if they cannot load."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from posttrain import hub
    from posttrain.models.adapter import quantization_config
    from posttrain.models.local_folder import missing_weights

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # Without `trust_remote_code`, Transformers would ask on a terminal whether to run a model's own code.
    kwargs: dict[str, Any] = {
        "trust_remote_code": False,
        **origin.options,
        "dtype": dtype or origin.dtype,
        "revision": origin.revision,
        "use_safetensors": True,
    }
    if origin.quantization:
        kwargs["quantization_config"] = quantization_config(PeftConfig(quantization=origin.quantization))
        kwargs["device_map"] = where
    auto: Any = AutoModelForCausalLM
    scores = origin.scores if scores is None else scores
    if scores:
        auto, kwargs["num_labels"] = AutoModelForSequenceClassification, 1
    try:
        model, info = auto.from_pretrained(origin.base, output_loading_info=True, **kwargs)
    except (OSError, ValueError, SafetensorError) as error:
        of = "no such run or folder; as a hub id" if origin.base == origin.name else f"its base {origin.base}"
        of = "" if Path(origin.name).is_dir() and not origin.adapter else f"{of}: "
        raise PosttrainError(f"RUN={origin.name}: {of}{hub.cannot_load(error, origin.base)}") from error
    if missing := missing_weights(model, info["missing_keys"], new_head=scores and origin.adapter is not None):
        raise PosttrainError(
            f"RUN={origin.name}: the weights at {origin.base} lack {missing}; restore or copy them again"
        )
    return model.eval() if origin.quantization else model.to(where).eval()


def free_memory() -> None:
    """Return the memory of models that nothing refers to any more to the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
