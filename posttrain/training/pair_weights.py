"""Weighted preference pairs: the column `weight`, which TRL's trainers do not read.

A pair's weight scales the gradient that its outputs pass to the model, so the step is that of the batch mean of
weight x loss. This is exact for every loss of TRL's reward and DPO trainers that compares only the two answers of a
pair, and needs no new loss. The logged losses are TRL's, without weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from torch import Tensor

COLUMN = "weight"
# Losses that sort the scores of a batch, and so compare answers of different pairs.
LOSSES_OVER_BATCH = {"aot", "aot_unpaired"}


@dataclass
class Collator:
    """TRL's collator, which also returns `weight`, (pairs,); it is 1 for a row without one."""

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        weights = [1.0 if (weight := row.get(COLUMN)) is None else weight for row in examples]
        return {**self.collator(examples), COLUMN: torch.tensor(weights, dtype=torch.float32)}


class GradientScale:
    """Takes `weight` from a model's arguments, and scales the gradients of the output's rows by it."""

    def __init__(self, model: Any):
        self.weight: Tensor | None = None
        model.register_forward_pre_hook(self.take, with_kwargs=True)
        model.register_forward_hook(self.scale)

    def take(self, _model: Any, positional: Any, named: dict[str, Any]) -> Any:
        self.weight = named.pop(COLUMN, None)
        return positional, named

    def scale(self, _model: Any, _inputs: Any, output: Any) -> None:
        """Scale the gradients of the output, (2 * pairs, ...): all chosen answers, then all rejected ones."""
        weight, self.weight = self.weight, None
        rows = output.log_probs if getattr(output, "log_probs", None) is not None else output.logits
        if weight is None or not rows.requires_grad:
            return
        each = weight.repeat(2).view(-1, *[1] * (rows.dim() - 1))
        rows.register_hook(lambda gradient: gradient * each.to(gradient))


def check(config: Any) -> None:
    """Raise `PosttrainError` for options of TRL's config that mix pairs, or change their order."""
    asked = getattr(config, "loss_type", None) or ()
    if LOSSES_OVER_BATCH & ({asked} if isinstance(asked, str) else {*asked}):
        raise PosttrainError(
            f"trainer.args.loss_type={asked}: compares answers of different pairs, so a pair has no weight there; "
            "choose another, or give the column another name: 'data.columns={OTHER: weight}'"
        )
    if config.n_gpu > 1:  # DataParallel splits answers and weights alike, but there are two answers per weight
        raise PosttrainError(
            f"pairs with a weight: this process has {config.n_gpu} GPUs; give it one (CUDA_VISIBLE_DEVICES=0), or each "
            "its own process (accelerate launch)"
        )


def add_pair_weights(trainer: Any) -> None:
    """Make TRL's reward or DPO trainer weight pairs by the column `weight`."""
    trainer.data_collator = Collator(trainer.data_collator)
    trainer._set_signature_columns_if_needed()
    trainer._signature_columns = [*trainer._signature_columns, COLUMN]
    for model in (trainer.model, getattr(trainer, "ref_model", None)):
        if model is not None:
            GradientScale(model)
