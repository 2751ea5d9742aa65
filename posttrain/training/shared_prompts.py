"""Prompts computed once for all their answers, per trainer (docs/performance.md)."""

from __future__ import annotations

import sys
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
    if _order_is_free(trainer):
        keep_groups(trainer)
    return None


def _order_is_free(trainer: Any) -> bool:
    """Whether a generation batch makes one step in which no row's loss depends on the other rows of its microbatch."""
    args = trainer.args
    return (
        _shuffling(trainer) is not None
        and args.steps_per_generation == args.gradient_accumulation_steps
        and getattr(args, "loss_type", None) != "bnpo"  # a mean over the tokens of a microbatch
        and getattr(args, "top_entropy_quantile", 1.0) == 1.0
        and not getattr(trainer, "_entropy_bonus_enabled", False)
        and not trainer.aux_loss_enabled
    )


def _shuffling(trainer: Any) -> Any:
    """The module of the trainer's class that shuffles generation batches, or `None`."""
    modules = [sys.modules[base.__module__] for base in type(trainer).__mro__]
    return next((module for module in modules if hasattr(module, "shuffle_sequence_dict")), None)


def keep_groups(trainer: Any) -> None:
    """Put the rows of a prompt next to one another after TRL has shuffled a generation batch over microbatches."""
    module, prepare = _shuffling(trainer), trainer._prepare_inputs
    shuffle = module.shuffle_sequence_dict

    def together(batch: dict[str, Any]) -> dict[str, Any]:
        batch = shuffle(batch)
        places: dict[tuple[int, ...], int] = {}
        seen = [places.setdefault(tuple(row), len(places)) for row in batch["prompt_ids"].tolist()]
        order = sorted(range(len(seen)), key=seen.__getitem__)
        return {name: _take(value, order) for name, value in batch.items()}

    def prepare_inputs(batch: Any) -> Any:
        module.shuffle_sequence_dict = together
        try:
            return prepare(batch)
        finally:
            module.shuffle_sequence_dict = shuffle

    trainer._prepare_inputs = prepare_inputs


def _take(value: Any, order: list[int]) -> Any:
    if value is None or (hasattr(value, "dim") and value.dim() == 0):
        return value
    return value[order] if hasattr(value, "dim") else [value[n] for n in order]
