"""Prompts computed once for all their answers, per trainer (docs/performance.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain.config.schema import Run
from posttrain.models import shared_prompt

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# What has several answers to a prompt in every batch.
SHARED_ANSWERS = ("dpo", "reward", "grpo", "rloo")
KINDS = (*SHARED_ANSWERS, "ppo")
# These switch dropout off by default; the others leave it on.
DISABLE_DROPOUT = ("dpo", "reward", "ppo")


def plan(run: Run, config: PretrainedConfig, attention: str) -> str | None:
    """Why the prompt of several answers is computed for each of them; `None` where it is computed once, or has one."""
    kind, args = run.trainer.kind, run.trainer.args
    several = kind == "ppo" and (args.get("num_generations") or 1) > 1
    if kind not in SHARED_ANSWERS and not several:
        return None
    reason = shared_prompt.unsupported_reason(config, attention)
    noise = run.peft.method == "lora" and run.peft.lora.get("lora_dropout")
    if not run.trainer.share_prompts:
        reason = "trainer.share_prompts=false"
    elif noise and not args.get("disable_dropout", kind in DISABLE_DROPOUT):
        reason = f"peft.lora.lora_dropout={noise} is drawn for each answer in training; 0 shares them"
    return f"computed for each answer: {reason}" if reason else None


def share(trainer: Any) -> str | None:
    """Make the models of `trainer` compute a prompt once; returns why they do not, or `None`."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return "the weights are sharded"
    copy = getattr(trainer, "ref_model", None)
    for model in (trainer.model, copy):
        if model is None:
            continue
        inside = trainer.accelerator.unwrap_model(model)
        inside = inside.get_base_model() if hasattr(inside, "get_base_model") else inside
        if reason := shared_prompt.share_prompts(inside):
            return reason
        if shared_prompt.dropout(inside):
            return "training draws dropout for each answer; trainer.args.disable_dropout=true shares them"
    if hasattr(trainer.args, "steps_per_generation"):
        from posttrain.training.grouped_rows import keep_groups

        keep_groups(trainer)
    return None
