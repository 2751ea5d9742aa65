"""A model's config and its parameter counts, without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain.config.schema import ModelConfig, Run
from posttrain.errors import PosttrainError
from posttrain.hub import cannot_load
from posttrain.models.adapter import lora_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def config(model: ModelConfig, path: str, revision: str | None) -> PretrainedConfig:
    """The model's own config, at `path` and `revision`; raises `PosttrainError` where there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=model.trust_remote_code)
    except Exception as error:
        raise PosttrainError(f"model.path={model.path}: {cannot_load(error, model.path)}") from error


def architecture(run: Run, path: str, revision: str | None) -> tuple[tuple[int, int], int | None]:
    """((all, trained) parameter counts, context length), from the config at `path` alone: no weights, no memory."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    known = config(run.model, path, revision)
    auto: Any = AutoModelForCausalLM
    if run.trainer.kind == "reward":
        auto, known.num_labels = AutoModelForSequenceClassification, 1
    with torch.device("meta"):
        model = auto.from_config(known, trust_remote_code=run.model.trust_remote_code)
        if adapter := lora_config(run.peft, run.trainer.kind):
            try:
                model = get_peft_model(model, adapter)
            except ValueError as error:
                raise PosttrainError(f"peft.lora: {error}") from error
    # Tied weights count once; a copy kept by PEFT for `modules_to_save` is the trained one.
    unique = {id(p): p for p in model.parameters()}.values()
    counts = sum(p.numel() for p in unique), sum(p.numel() for p in unique if p.requires_grad)
    return counts, getattr(known.get_text_config(), "max_position_embeddings", None)
