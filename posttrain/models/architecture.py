"""A model's config and its parameter counts, without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import ModelConfig, Run
from posttrain.errors import PosttrainError, first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def load_config(model: ModelConfig, path: str, revision: str | None) -> PretrainedConfig:
    """The model's own config, at `path` and `revision`; raises `PosttrainError` where there is none."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    try:
        known = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=model.trust_remote_code)
    except Exception as error:
        from posttrain.hub import cannot_load

        raise PosttrainError(f"model.path={model.path}: {cannot_load(error, model.path)}") from error
    kind = type(known)
    if kind in AutoModelForImageTextToText._model_mapping and kind not in AutoModelForCausalLM._model_mapping:
        raise PosttrainError(
            f"model.path={model.path}: a {known.model_type} model reads images, and Transformers has no text model of "
            "its kind, so it cannot be trained on text alone here; choose a text checkpoint of the family"
        )
    return known


def sees(known: PretrainedConfig) -> bool:
    """Whether a checkpoint also reads images or sound; only its text model is trained here."""
    return any(hasattr(known, name) for name in ("vision_config", "audio_config"))


def keeps_senses(known: PretrainedConfig) -> bool:
    """Whether the class that is loaded for text still has the modules for images, as Gemma 3's does."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    text, both = (auto._model_mapping for auto in (AutoModelForCausalLM, AutoModelForImageTextToText))
    kind = type(known)
    return sees(known) and kind in text and kind in both and text[kind] is both[kind]


def attention_implementation(known: PretrainedConfig, chosen: str, scores: bool) -> str:
    """`chosen`, where the architecture has it: not all have sdpa or flash attention, and all have eager."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto: Any = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    try:
        model = auto._model_mapping[type(known)]
    except KeyError:  # its own code (trust_remote_code)
        return chosen
    model = model[0] if isinstance(model, (list, tuple)) else model
    has = {"sdpa": model._supports_sdpa, "flash_attention_2": model._supports_flash_attn}
    return next((name for name in (chosen, "sdpa") if has.get(name, True)), "eager")


def architecture(run: Run, path: str, revision: str | None) -> tuple[tuple[int, int], int | None]:
    """((all, trained) parameter counts, context length), from the config at `path` alone: no weights, no memory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    known = load_config(run.model, path, revision)
    auto: Any = AutoModelForCausalLM
    if trainers.of(run.trainer.kind).scores:
        auto, known.num_labels = AutoModelForSequenceClassification, 1
    if run.model.kwargs:
        from posttrain.models import model_kwargs

        model_kwargs.check_names(run.model, known)
    with torch.device("meta"):
        model = _without_weights(auto, known, run.model)
        if run.model.kwargs:
            model_kwargs.check_shapes(run.model, known, model, lambda other: _without_weights(auto, other, run.model))
        if run.peft.method != "none":
            from posttrain.models.adapter import add_without_weights

            if run.peft.value:
                other = _without_weights(auto, known, run.model)
                add_without_weights(other, run.peft, run.trainer.kind, keeps_senses(known), value=True)
            model = add_without_weights(model, run.peft, run.trainer.kind, keeps_senses(known))
    # Tied weights count once; a copy kept by PEFT for `modules_to_save` is the trained one.
    unique = {id(p): p for p in model.parameters()}.values()
    counts = sum(p.numel() for p in unique), sum(p.numel() for p in unique if p.requires_grad)
    return counts, getattr(known.get_text_config(), "max_position_embeddings", None)


def _without_weights(auto: Any, known: PretrainedConfig, model: ModelConfig) -> Any:
    """The model on the meta device, with the attention that is asked for by name; `auto` is the class to load."""
    asked = model.attn_implementation
    # One with a slash is a kernel of the hub, which would be fetched.
    options = {} if asked == "auto" or "/" in asked else {"attn_implementation": asked}
    try:
        return auto.from_config(known, trust_remote_code=model.trust_remote_code, **options)
    except (ValueError, ImportError) as error:
        if str(error).startswith("Unrecognized configuration class"):
            what = "causal language model; choose one" if "Causal" in auto.__name__ else "classifier; choose one"
            raise PosttrainError(f"model.path={model.path}: a {known.model_type} model is no {what}") from error
        if not options:
            raise
        raise PosttrainError(f"model.attn_implementation={asked}: {first_line(error)}") from error
