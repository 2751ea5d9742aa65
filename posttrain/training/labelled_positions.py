"""The language-model head computes only the positions that carry loss, on a CPU too.

TRL's fused head does so where Triton runs. Elsewhere it computes all positions, with prompts and padding, because
compilers of some accelerators need the same shapes in every batch. A CPU does not, and there the head is a large part
of the work: it has a quarter of the weights of SmolLM2-135M.
"""

from typing import Any


def score_only_labels() -> None:
    """Make TRL's fused head skip positions without a label on a CPU."""
    from trl.trainer import utils

    # `add_fused_lm_head` calls this to decide; the kernels call another function.
    utils._use_triton = _leaves_out


def _leaves_out(device: Any) -> bool:
    from trl.kernels.chunked_logprob import _use_triton

    return device.type == "cpu" or _use_triton(device)
