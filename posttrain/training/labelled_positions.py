"""The language-model head computes only the positions that carry loss, on a CPU too.

TRL's fused head does so where Triton runs. Elsewhere it computes all, prompts and padding included, because compilers
of some accelerators want the same shapes in every batch; a CPU does not care, and there the head is a large part of
the work: a quarter of the parameters that SmolLM2-135M multiplies by.
"""

from typing import Any


def score_only_labels() -> None:
    """Tell TRL's fused head to leave positions without a label out on a CPU."""
    from trl.trainer import utils

    # `add_fused_lm_head` asks this whether to leave them out; the kernels ask a function of their own.
    utils._use_triton = _leaves_out


def _leaves_out(device: Any) -> bool:
    from trl.kernels.chunked_logprob import _use_triton

    return device.type == "cpu" or _use_triton(device)
