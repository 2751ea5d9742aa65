"""A forward pass that returns what PPO needs about completion tokens, and nothing about prompt tokens."""

import functools
import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils import ModelOutput
from trl.trainer.utils import selective_log_softmax_and_entropy

# Largest number of logits that a pass keeps: 64 MiB in float32, and as much for their gradient.
KEPT_LOGITS = 1 << 24

# A CPU computes about so many tokens in the time that one pass takes to read the weights. Less padding than this is
# not worth a second pass.
SPARED_PADDING = 64


@dataclass
class CompletionOutput(ModelOutput):
    """Per-token results for the T completion tokens of B rows; a field that was not asked for is None.

    DDP only sees gradients of what the wrapped forward *returns*, so values are part of it. The field cannot be called
    `values`: a `ModelOutput` is a dict, and DDP calls its `.values()`.
    """

    log_probs: torch.Tensor = None  # type: ignore[assignment]
    """(B, T), log-probability of each token under the sampling temperature; 0 on padding."""
    entropy: torch.Tensor = None  # type: ignore[assignment]
    """(B, T), entropy of the distribution each token was drawn from, in nats; 0 on padding."""
    value: torch.Tensor = None  # type: ignore[assignment]
    """(B, T), value of the state before each token, float32."""
    aux_loss: torch.Tensor = None  # type: ignore[assignment]
    """Scalar, load-balancing loss of a mixture-of-experts model."""


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position of every real token counted from the row's first one, (B, L); padding gets 0.

    Without them, models with absolute positions (GPT-2 …) see a left-padded prompt shifted.
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def takes_position_ids(model_class: type) -> bool:
    return "position_ids" in inspect.signature(model_class.forward).parameters  # type: ignore[attr-defined]


def split_rows(lengths: torch.Tensor) -> list[slice]:
    """Slices of consecutive rows, one per forward pass: on a GPU a single slice with all rows.

    A CPU is as fast with few rows as with many, so there no pass has more than `SPARED_PADDING` tokens of padding.
    `lengths`, (B, parts), are the real tokens of each row in each part that is padded by itself.
    """
    if lengths.device.type != "cpu":
        return [slice(0, len(lengths))]
    starts = [0]
    for end in range(1, len(lengths) + 1):
        rows = lengths[starts[-1] : end]
        if len(rows) * rows.amax(0).sum() - rows.sum() > SPARED_PADDING:
            starts.append(end - 1)
    return [slice(start, end) for start, end in pairwise([*starts, len(lengths)])]


def split_batch(batch: dict[str, Any], labels: torch.Tensor) -> list[tuple[dict[str, Any], torch.Tensor]]:
    """The passes that [`split_rows`] makes of a batch and its completion labels, each cut to its own longest row."""
    prompt = batch["attention_mask"].size(1) - labels.size(1)
    parts = batch["attention_mask"].split([prompt, labels.size(1)], dim=1)
    lengths = torch.stack([part.sum(1) for part in parts], dim=1)
    groups = split_rows(lengths)
    if len(groups) == 1:
        return [(batch, labels)]
    passes = []
    for rows in groups:
        before, after = lengths[rows].amax(0).clamp(min=1).tolist()
        columns = slice(max(prompt - before, 0), prompt + after)
        cut = {key: value[rows, columns] if torch.is_tensor(value) else value for key, value in batch.items()}
        passes.append((cut, labels[rows, :after]))
    return passes


@contextmanager
def completion_states(backbone: nn.Module, length: int) -> Iterator[list[torch.Tensor]]:
    """Within, the backbone returns only the hidden states that predict the last `length` tokens.

    Yields:
        A list that receives those states, (B, length, H), with every pass.
    """
    seen: list[torch.Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> Any:
        # The state at position t predicts token t + 1.
        output.last_hidden_state = output.last_hidden_state[:, -(length + 1) : -1]
        seen.append(output.last_hidden_state)
        return output

    handle = backbone.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def apply_head(head: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """Apply a scalar head in float32, also under autocast: (…, H) to (…)."""
    hidden = hidden.to(head.weight.device)
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float()).squeeze(-1)


def join(results: list[CompletionOutput], length: int) -> CompletionOutput:
    """Concatenate the results of consecutive rows into those of one batch, padded to `length` completion tokens."""
    joined = CompletionOutput()
    for name in results[0]:
        fields = [result[name] for result in results]
        joined[name] = torch.cat([functional.pad(field, (0, length - field.size(1))) for field in fields])
    return joined


def add_completion_forward(model: PreTrainedModel, temperature: float = 1.0) -> None:
    """Teach `model` (with TRL's fused LM head) `model(..., completion_labels=labels, want=names)`.

    `completion_labels` are the completion's token ids, (B, T), with -100 on padding; `want` names the fields of
    [`CompletionOutput`] to compute, among `log_probs` (brings `entropy`), `value` and `aux_loss`. `value` reads
    `model.value_head`. `temperature` is that of sampling. Without `completion_labels` the forward pass is unchanged,
    and so is generation.

    TRL's fused LM head does not keep the logits; its backward pass computes them again. A batch with at most
    `KEPT_LOGITS` logits keeps them instead.

    On a CPU, rows of unlike length go through the model in their own passes, see [`split_rows`].
    """
    inner = model.forward
    # The load-balancing loss of a mixture of experts is computed over the whole batch, so its rows stay together.
    is_mixture_of_experts = hasattr(model.config.get_text_config(), "output_router_logits")

    def complete(self, batch, labels, want, hold_logits):
        result = CompletionOutput()
        # OPT's head reads the decoder in its backbone.
        backbone = getattr(self.base_model, "decoder", self.base_model)
        with completion_states(backbone, labels.size(1)) as states:
            if "log_probs" in want:
                if hold_logits:
                    scored = inner(use_cache=False, **batch)
                    labels = labels.to(scored.logits.device)
                    result["log_probs"], result["entropy"] = selective_log_softmax_and_entropy(
                        scored.logits.float(),
                        labels.clamp(min=0),
                        entropy_requires_grad=False,
                        temperature=temperature,
                        row_mask=labels != -100,
                    )
                else:
                    scored = inner(shift_labels=labels, fused_lm_head=True, **batch)
                    result["log_probs"], result["entropy"] = scored.log_probs, scored.entropy
                if "aux_loss" in want:
                    result["aux_loss"] = scored.aux_loss
            else:
                self.base_model(use_cache=False, **batch)
        if "value" in want:
            result["value"] = apply_head(self.value_head, states[-1])
        return result

    @functools.wraps(type(model).forward)  # generation checks its arguments against this signature
    def forward(self, *args, completion_labels=None, want=(), **kwargs):
        if completion_labels is None:
            return inner(*args, **kwargs)
        batch = {key: value for key, value in kwargs.items() if value is not None}
        if "aux_loss" in want:
            batch["output_router_logits"] = True
        # The value pass needs no head, and one in `modules_to_save` has no weight while the value adapter is active.
        hold_logits = "log_probs" in want and (
            completion_labels.numel() * self.get_output_embeddings().weight.size(0) <= KEPT_LOGITS
        )
        passes = [(batch, completion_labels)] if is_mixture_of_experts else split_batch(batch, completion_labels)
        results = [complete(self, part, labels, want, hold_logits) for part, labels in passes]
        return results[0] if len(results) == 1 else join(results, completion_labels.size(1))

    model.forward = types.MethodType(forward, model)
