"""KL between policy and reference, and the policy's entropy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from posttrain.models.generate import Generated, completion_logits, pad_batch
from posttrain.training.reference import is_policy

Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# Sequences computed at a time, since the logits of two models over the whole vocabulary are large.
SEQUENCES = 4


@torch.no_grad()
def entropy_and_kl(
    policy: Logits,
    reference: Logits | None,
    ids: torch.Tensor,
    mask: torch.Tensor,
    completion: int,
    own: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Entropy of each sequence's next-token distributions, and KL(policy || reference), both summed over its tokens.

    `own`, (batch, completion), is 0 for tokens that do not count, such as a tool's answer.

    `ids`, `mask`: (batch, prompt + completion), left-padded prompts; `completion`: number of completion positions;
    `policy`, `reference`: callables returning logits (batch, completion, vocabulary) for those positions. Returns two
    of (batch,) in nats, the second None without a reference. At each position of a sample the KL of the two next-token
    distributions is exact, and the sum over a sample's positions estimates the sequence KL without bias and with less
    variance than the sum of log-ratios (Amini et al. 2025, "Better Estimation of the KL Divergence Between Language
    Models", eq. 10).
    """
    shown = mask[:, -completion:] if own is None else mask[:, -completion:] * own
    log_p = policy(ids, mask).float().log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1)
    if reference is None:
        return (entropy * shown).sum(-1), None
    log_p -= reference(ids, mask).float().log_softmax(-1)
    return (entropy * shown).sum(-1), ((p * log_p).sum(-1) * shown).sum(-1)


def measure_samples(
    trainer: Any, model: Any, drawn: list[Generated], pad: int, progress: Callable[[int], None] | None = None
) -> tuple[float, list[float]]:
    """The policy's entropy per sampled token, and the KL of each sample (an empty list without a reference in memory).

    Before the first step the reference equals the policy, so the KL is 0 and is not computed.
    """
    reference = _reference(trainer, model)
    same = reference is not None and is_policy(trainer)
    entropy = 0.0
    divergences: list[float] = []
    order = sorted(drawn, key=lambda d: len(d.prompt_ids) + len(d.ids))
    for start in range(0, len(order), SEQUENCES):
        part = order[start : start + SEQUENCES]
        ids, mask, completion = pad_batch([(d.prompt_ids, d.ids) for d in part], pad, model.device)
        counted = [(d.own or [1] * len(d.ids)) + [0] * (completion - len(d.ids)) for d in part]
        own = torch.tensor(counted, device=model.device)

        def policy(ids: torch.Tensor, mask: torch.Tensor, n: int = completion) -> torch.Tensor:
            return completion_logits(model, ids, mask, n)

        def behind(ids: torch.Tensor, mask: torch.Tensor, n: int = completion) -> torch.Tensor:
            with reference() as net:
                return completion_logits(net, ids, mask, n)

        spread, kl = entropy_and_kl(policy, behind if reference and not same else None, ids, mask, completion, own)
        entropy += float(spread.sum())
        divergences += [0.0] * len(part) if same else [] if kl is None else kl.tolist()
        if progress is not None:
            progress(len(part))
    return entropy / sum(d.length for d in drawn), divergences


def _reference(trainer: Any, model: Any) -> Any:
    """A context manager that yields the reference (the frozen adapter `ref`, the base, or a copy); None without one."""
    from peft import PeftModel
    from trl.trainer.utils import use_adapter

    if isinstance(model, PeftModel):

        @contextmanager
        def adapter_off() -> Iterator[Any]:
            with use_adapter(model, "ref" if "ref" in model.peft_config else None):
                yield model

        return adapter_off
    copy = getattr(trainer, "ref_model", None)
    return None if copy is None else lambda: nullcontext(copy)
