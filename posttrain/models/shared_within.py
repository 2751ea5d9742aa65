"""Prompts shared (`posttrain.models.shared_prompt`) for as long as a block lasts."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from transformers import PreTrainedModel

from posttrain.models.shared_prompt import SharedPrompts, is_shared, share_prompts


@contextmanager
def shared_within(model: Any, share: Callable[[Any], object] = share_prompts) -> Iterator[None]:
    """Apply `share` to `model`, which may be PEFT's, while the block runs, unless it was applied before.

    An object that is no model, such as an engine, and a model without a backbone are left unchanged.
    """
    inside = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inside, PreTrainedModel) or inside.base_model is inside:  # Llama 4's text model has no backbone
        yield
        return
    backbone: Any = inside.base_model
    before = is_shared(inside)
    if not before:
        share(inside)
    try:
        yield
    finally:
        if not before and is_shared(inside):
            backbone.forward = backbone.forward.__self__.inner


def prefilling_once(model: Any) -> AbstractContextManager[None]:
    """In the block, generation reads a prompt that is in a batch several times only once, with any attention."""
    return shared_within(model, _share_before_generation)


def _share_before_generation(model: Any) -> None:
    model.base_model.forward = SharedPrompts(model.base_model).forward
