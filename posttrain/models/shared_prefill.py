"""Prefill of generation that computes a prompt once that is in a batch several times."""

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


def prefill(inner: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
    """The prefill by `inner`: each different prompt is computed once, and its keys and values are repeated.

    Any other forward pass goes to `inner` unchanged.
    """
    if not _is_prefill(kwargs):
        return inner(**kwargs)
    ids, mask, positions = (kwargs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    assert ids is not None
    # Everything in which rows may differ, concatenated.
    whole = torch.cat([part.expand_as(ids) for part in (ids, mask, positions) if part is not None], dim=1)
    keys = [tuple(row) for row in whole.tolist()]
    places: dict[tuple[int, ...], int] = {}
    rows = [places.setdefault(key, len(places)) for key in keys]
    if len(places) == len(rows):
        return inner(**kwargs)
    once = torch.tensor([rows.index(n) for n in range(len(places))], device=ids.device)
    again = torch.tensor(rows, device=ids.device)
    read = {
        name: value[once] if torch.is_tensor(value) and value.dim() > 1 and len(value) == len(rows) else value
        for name, value in kwargs.items()
    }
    output = inner(**read)
    kwargs["past_key_values"].batch_select_indices(again)
    output.last_hidden_state = output.last_hidden_state[again]
    return output


def _is_prefill(kwargs: dict[str, Any]) -> bool:
    """Whether this call reads prompts into an empty cache that rows can be selected from."""
    cache, ids = kwargs["past_key_values"], kwargs["input_ids"]
    return (
        type(cache) is DynamicCache
        and ids.size(1) > 1
        and len(ids) > 1
        and not torch.is_grad_enabled()
        and cache.get_seq_length() == 0
        # Linear attention keeps a state of another kind.
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
        and all(kwargs.get(name) is None or kwargs[name].shape == ids.shape for name in ("attention_mask",))
    )
