"""Caching of the reference's log-probabilities in DPO's evaluations; before the first step they are the policy's.

Training steps do not use the cache.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from posttrain.training import sharding
from posttrain.training.shared_prompts import base_models


def is_policy(trainer: Any) -> bool:
    """Whether policy and reference give the same outputs, bit for bit: weights were equal and no step was taken."""
    from peft import PeftModel

    if trainer.state.global_step > 0 or sharding.divides(trainer):
        return False
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not isinstance(model, PeftModel):
        return True  # TRL loads the reference from where it loaded the policy
    from posttrain.models.adapter import changes_nothing

    return changes_nothing(model)


class CachedReference:
    """Makes a DPO trainer compute the reference of each evaluation batch only once, at the first evaluation.

    Where the reference equals the policy, the policy's own forward pass serves for both.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.loss = trainer.compute_loss
        self.known: dict[bytes, tuple[Any, Any]] = {}
        trainer.compute_loss = self.compute_loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        trainer = self.trainer
        if trainer.model.training or trainer.precompute_ref_logps:
            return self.loss(model, inputs, *args, **kwargs)
        key = hashlib.sha256()
        for name in ("input_ids", "completion_mask"):
            key.update(str(tuple(inputs[name].shape)).encode() + inputs[name].cpu().numpy().tobytes())
        backbones = [model.base_model for model in base_models(trainer)]
        with _share_forward(backbones) if is_policy(trainer) else nullcontext():
            if key.digest() not in self.known:
                self.known[key.digest()] = trainer.compute_ref_log_probs(trainer.ref_model or model, inputs)
            chosen, rejected = self.known[key.digest()]
            trainer.precompute_ref_logps = True
            try:
                known = {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
                return self.loss(model, {**inputs, **known}, *args, **kwargs)
            finally:
                trainer.precompute_ref_logps = False


def cache_reference(trainer: Any) -> None:
    """Apply `CachedReference`, unless the reference follows the policy (`sync_ref_model`)."""
    if not trainer.args.sync_ref_model:
        CachedReference(trainer)


@contextmanager
def _share_forward(backbones: list[Any]) -> Iterator[None]:
    """In the block, these backbones, which have equal weights, compute each tensor of token ids only once."""
    known: dict[int, tuple[Any, Any]] = {}
    forwards = [backbone.forward for backbone in backbones]

    def remembering(forward: Any) -> Any:
        def answer(*args: Any, **kwargs: Any) -> Any:
            ids = kwargs.get("input_ids")
            if args or ids is None or kwargs.get("output_router_logits"):
                return forward(*args, **kwargs)
            if id(ids) not in known:
                known[id(ids)] = (ids, forward(**kwargs))  # a reference to ids, so that its id() is not reused
            return known[id(ids)][1]

        return answer

    for backbone, forward in zip(backbones, forwards, strict=True):
        backbone.forward = remembering(forward)
    try:
        yield
    finally:
        for backbone, forward in zip(backbones, forwards, strict=True):
            backbone.forward = forward
