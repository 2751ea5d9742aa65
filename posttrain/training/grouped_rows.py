"""Puts the answers to one prompt into one microbatch, so that the prompt is computed once for all of them."""

import sys
from typing import Any


def _order_is_free(trainer: Any) -> bool:
    """Whether a generation batch is one step, and no row's loss depends on the other rows of its microbatch."""
    args = trainer.args
    return (
        args.steps_per_generation == args.gradient_accumulation_steps
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
    """Put the rows of a prompt next to each other after TRL has shuffled a generation batch."""
    module, prepare = _shuffling(trainer), trainer._prepare_inputs
    if module is None or not _order_is_free(trainer):
        return
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
