"""Prompts computed once for all their answers, per trainer (docs/performance.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain.config import trainers
from posttrain.config.schema import Run
from posttrain.config.trainers import Kind
from posttrain.models import shared_prompt

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def several_answers(kind: Kind, args: dict[str, Any]) -> bool:
    """Whether batches have several answers to a prompt."""
    return kind.reads in ("pairs", "triples") or (args.get("num_generations", kind.generations) or 1) > 1


def plan(run: Run, config: PretrainedConfig, attention: str) -> str | None:
    """Why a prompt is computed once per answer; `None` where it is computed once, or has a single answer."""
    kind, args = trainers.of(run.trainer.kind), run.trainer.args
    if not several_answers(kind, args):
        return None
    reason = shared_prompt.unsupported_reason(config, attention)
    noise = run.peft.method == "lora" and run.peft.lora.get("lora_dropout")
    if not run.trainer.share_prompts:
        reason = "trainer.share_prompts=false"
    elif noise and not args.get("disable_dropout", kind.default("disable_dropout")):
        reason = f"peft.lora.lora_dropout={noise} is drawn for each answer in training; 0 shares them"
    return f"computed for each answer: {reason}" if reason else None


def base_models(trainer: Any) -> list[Any]:
    """The policy, and a reference if it is a separate model, both without wrappers and adapters."""
    models = [model for model in (trainer.model, getattr(trainer, "ref_model", None)) if model is not None]
    inside = [trainer.accelerator.unwrap_model(model) for model in models]
    return [model.get_base_model() if hasattr(model, "get_base_model") else model for model in inside]


def share(trainer: Any) -> str | None:
    """Make the models of `trainer` compute a prompt once; returns why they do not, or `None`."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return "the weights are sharded"
    for model in base_models(trainer):
        if reason := shared_prompt.share_prompts(model):
            return reason
        if shared_prompt.dropout(model):
            return "training draws dropout for each answer; trainer.args.disable_dropout=true shares them"
    if hasattr(trainer.args, "steps_per_generation"):
        from posttrain.training.grouped_rows import keep_groups

        keep_groups(trainer)
    return None
