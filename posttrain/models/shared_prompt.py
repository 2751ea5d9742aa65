"""Computes the common prompt of several rows of a batch once.

`share_prompts` wraps the forward of a backbone, the module under the language-model head or the score head. Rows with
a common beginning (both answers of a pair, a group of samples) are computed in the layout of `prompt_tree`. The result
is the hidden states of the original rows, so heads, losses and metrics are unchanged. The idea is Wang and Hegde 2024
(arXiv:2410.20305). Generation: `posttrain.models.shared_prefill`.

Calls that it cannot compute exactly go to the backbone unchanged: caches, custom masks, embeddings, packed rows, and
batches that would save little.
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from posttrain.models.prompt_tree import Layout, Row, arrange

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Attention implementations that take any mask.
ATTENTION = ("sdpa", "eager", "flex_attention")
# Arguments with which rows can be shared; a call with others is not. The backbone ignores a reward model's `margin`.
KNOWN_ARGUMENTS = {
    *("input_ids", "attention_mask", "position_ids", "use_cache", "return_dict"),
    *("output_router_logits", "margin"),
}
# Largest difference of hidden states, relative to their own size, that counts as rounding.
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3}
HALF_PRECISION_ROUNDING = 0.1


def unsupported_reason(config: PretrainedConfig, attention: str | None) -> str | None:
    """Why prompts of a model with this config and attention are not shared; `None` where they are."""
    text = config.get_text_config()
    if attention not in ATTENTION:
        return f"attention {attention} takes no mask for it; model.attn_implementation=sdpa does"
    if config.is_encoder_decoder or text is not config:
        return "the model reads more than one text"
    if not getattr(text, "num_attention_heads", None):
        return "the model has no attention"
    types = getattr(text, "layer_types", None) or getattr(text, "attention_layers", None) or ()  # GPT-Neo: the latter
    if others := {*types} - {"full_attention", "sliding_attention", "global"}:
        return f"the model has layers of {', '.join(sorted(others))}"
    return None


def dropout(model: nn.Module) -> bool:
    """Whether the model has dropout in training: answers with a shared prompt would also share its random numbers."""
    config: Any = getattr(model, "config", None)
    return bool(getattr(config, "attention_dropout", 0)) or any(
        isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()
    )


def share_prompts(model: Any) -> str | None:
    """Make `model`, a causal language model or a sequence classifier, compute common beginnings of rows once.

    Returns `None`, or why the model is left unchanged. Under PEFT, pass the inner model. It first computes a small
    batch both ways, and leaves an architecture unchanged that reads masks or positions in its own way.
    """
    backbone = model.base_model
    if is_shared(model):
        return None
    if reason := unsupported_reason(model.config, backbone.config._attn_implementation):
        return reason
    if "position_ids" not in inspect.signature(backbone.forward).parameters:
        return "the model takes no positions"
    if _window(backbone.config.get_text_config()) and not hasattr(
        sys.modules[type(backbone).__module__], "create_sliding_window_causal_mask"
    ):
        return "the model has a sliding window that is not in its mask"
    shared = SharedPrompts(backbone)
    if reason := shared.differs():
        return reason
    backbone.forward = shared.forward
    return None


def is_shared(model: Any) -> bool:
    return isinstance(getattr(model.base_model.forward, "__self__", None), SharedPrompts)


class SharedPrompts:
    """The forward of `backbone` that shares prompts; `inner` is the original one."""

    def __init__(self, backbone: Any):
        self.backbone = backbone
        self.inner = backbone.forward
        self.config = backbone.config.get_text_config()
        self.random = dropout(backbone)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and "input_ids" not in kwargs:
            kwargs["input_ids"], args = args[0], ()
        given = {name for name, value in kwargs.items() if value is not None and value is not False}
        if args or "input_ids" not in given or (self.random and self.backbone.training):
            return self.inner(*args, **kwargs)
        if "past_key_values" in given:
            if not given <= {*KNOWN_ARGUMENTS, "past_key_values", "cache_position"}:
                return self.inner(**kwargs)
            from posttrain.models.shared_prefill import prefill

            return prefill(self.inner, kwargs)
        if given <= KNOWN_ARGUMENTS and kwargs.get("use_cache") is False and kwargs.get("return_dict") is not False:
            layout = self.layout(kwargs["input_ids"], kwargs.get("attention_mask"), kwargs.get("position_ids"))
            if layout is not None:
                return self._forward_grid(layout, kwargs)
        return self.inner(**kwargs)

    def layout(self, ids: torch.Tensor, mask: Any, positions: Any = None) -> Layout | None:
        """The layout of the rows; `None` where they are not shared."""
        rows = _rows(ids, mask, positions) if len(ids) > 1 else None
        return None if rows is None else arrange(ids, rows, self.config.hidden_size)

    def _forward_grid(self, layout: Layout, kwargs: dict[str, Any]) -> Any:
        ids = kwargs["input_ids"]
        grid = {"input_ids": ids.flatten()[layout.source], "attention_mask": self._mask(layout)}
        output = self.inner(**{**kwargs, **grid, "position_ids": layout.position})
        output.last_hidden_state = layout.scatter(output.last_hidden_state, *ids.shape)
        if getattr(output, "router_logits", None) is not None:
            # (tokens, experts) of every layer.
            output.router_logits = tuple(
                layout.scatter(logits.view(*layout.source.shape, -1), *ids.shape).flatten(0, 1)
                for logits in output.router_logits
            )
        return output

    def _mask(self, layout: Layout) -> Any:
        """The mask in the backbone's form: one, or one for each type of layer."""
        window = _window(self.config)
        if window is None or not getattr(self.config, "layer_types", None):
            return self._mask_of_layer(layout, window)
        windows = {"full_attention": None, "sliding_attention": window}
        return {kind: self._mask_of_layer(layout, seen) for kind, seen in windows.items()}

    def _mask_of_layer(self, layout: Layout, window: int | None) -> Any:
        kind = self.config._attn_implementation
        if kind == "flex_attention":
            from posttrain.models.block_mask import block_mask

            return block_mask(layout, window)
        seen = layout.attention_mask(window)
        if kind == "sdpa":
            return seen
        dtype = self.backbone.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)

    @torch.no_grad()
    def differs(self) -> str | None:
        """Why shared rows give another result than the backbone, tried on four short rows; `None` if they do not."""
        device, training = self.backbone.device, self.backbone.training
        if device.type == "meta":
            return "the model has no weights yet"
        size = self.config.vocab_size
        ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [3, 1, 4, 1, 5, 9, 2, 7, 8, 0]] * 2, device=device) % size
        ids[2:] = ids[2:].roll(1, dims=1)  # a row padded on the left, as before generation, with tokens of its own
        ids[2:, 1:5] = (ids[2:, 1:5] + 11) % size
        mask = torch.ones_like(ids)
        mask[1, -1] = mask[2:, 0] = 0
        self.backbone.eval()
        try:
            layout = self.layout(ids, mask)
            assert layout is not None
            kwargs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
            apart = self.inner(**kwargs).last_hidden_state
            together = self._forward_grid(layout, kwargs).last_hidden_state
        except Exception as error:  # an architecture may raise anything for a mask that it does not know
            return f"{type(self.backbone).__name__} does not take the mask ({type(error).__name__})"
        finally:
            self.backbone.train(training)
        apart = apart * mask[..., None]
        if not (together - apart).norm() <= ROUNDING.get(apart.dtype, HALF_PRECISION_ROUNDING) * apart.norm():
            return f"{type(self.backbone).__name__} gives other results for rows that are put together"
        return None


def _window(config: Any) -> int | None:
    """The sliding window of a model's layers, or of some of them."""
    types = getattr(config, "layer_types", None)
    return None if types and "sliding_attention" not in types else getattr(config, "sliding_window", None)


def _rows(ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None) -> list[Row] | None:
    """The real tokens of each row; `None` unless they are contiguous, with consecutive positions."""
    if ids.dim() != 2 or (mask is not None and mask.shape != ids.shape):
        return None
    real = torch.ones_like(ids) if mask is None else (mask != 0).long()
    first, lengths = real.argmax(1), real.sum(1)
    place = torch.arange(ids.size(1), device=ids.device)
    piece = (place >= first[:, None]) & (place < (first + lengths)[:, None])
    # Without positions of their own, models count columns.
    given = place.expand_as(ids) if positions is None else positions.expand_as(ids)
    begin = given.gather(1, first[:, None])
    counts = (given - begin == place - first[:, None]) | ~piece
    sound, starts, counted, opened = torch.cat(
        [((piece == (real == 1)) & counts).all(1)[:, None].long(), first[:, None], lengths[:, None], begin], dim=1
    ).T.tolist()
    if not all(sound):
        return None
    tokens = ids.tolist()
    return [
        Row(row[start : start + length], start, position)
        for row, start, length, position in zip(tokens, starts, counted, opened, strict=True)
    ]
