"""The mask of rows that share a prompt, for FlexAttention."""

from typing import Any

from torch.nn.attention.flex_attention import create_block_mask

from posttrain.models.prompt_tree import Layout


def block_mask(layout: Layout, window: int | None) -> Any:
    """The mask of FlexAttention, which skips blocks that are masked as a whole."""
    group, branch, position = layout.group, layout.branch, layout.position

    def sees(b: Any, _head: Any, q: Any, k: Any) -> Any:
        own = (branch[b, q] == branch[b, k]) | (branch[b, k] == 0)
        seen = (group[b, q] == group[b, k]) & own & (q >= k)
        if window is not None:
            seen = seen & (position[b, q] - position[b, k] < window)
        return seen | (q == k)

    return create_block_mask(sees, len(group), None, group.size(1), group.size(1), device=str(group.device))
