"""A layout of rows of tokens that holds a common beginning only once.

Two answers to one prompt become one row, `prompt | answer 1 | answer 2`: every token keeps its position, and no answer
attends to another. Rows are grouped so that the cost is lowest; groups fill the rows of a grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from posttrain.data.prompts import common_prefix_length

# A layout is used only if it costs less than this share of the original rows.
MAX_RELATIVE_COST = 0.9
# Most rows in a group.
MAX_GROUP = 64


@dataclass(frozen=True)
class Row:
    """The real tokens of a row; the first one is in column `column` and has position `position`."""

    tokens: list[int]
    column: int
    position: int


@dataclass(frozen=True)
class Group:
    """Rows (by number) with the same first `shared` tokens, and the `length` in tokens of their layout."""

    rows: list[int]
    shared: int
    length: int


@dataclass(frozen=True)
class Layout:
    """A grid of (G, M) tokens that holds all tokens of the rows, (R, L).

    `source`, (G, M): the index of each token in the flattened rows. `position`: (G, M). `group`, `branch`, (G, M): the
    group of a token (-1 for padding) and its answer (0 for the shared tokens). `takes`: for the first, second ...
    answers of all groups, the indices of their tokens in the flattened rows and in the flattened grid. No index comes
    twice in one of them, so that gradients are summed in a fixed order.
    """

    source: torch.Tensor
    position: torch.Tensor
    group: torch.Tensor
    branch: torch.Tensor
    takes: list[tuple[torch.Tensor, torch.Tensor]]

    def attention_mask(self, window: int | None = None) -> torch.Tensor:
        """(G, 1, M, M): a token attends to earlier tokens of its group that are shared or in its own answer.

        With a sliding `window`, only to those less than `window` positions before it. Padding attends to itself only.
        """
        place = torch.arange(self.group.size(1), device=self.group.device)
        own = self.branch[:, :, None] == self.branch[:, None, :]
        seen = (self.group[:, :, None] == self.group[:, None, :]) & (own | (self.branch == 0)[:, None, :])
        seen = seen & (place[:, None] >= place)
        if window is not None:
            seen = seen & (self.position[:, :, None] - self.position[:, None, :] < window)
        return (seen | (place[:, None] == place))[:, None]

    def scatter(self, computed: torch.Tensor, rows: int, length: int) -> torch.Tensor:
        """The hidden states `computed` for the grid, (G, M, H), as rows, (R, L, H); zero on padding."""
        flat = computed.flatten(0, 1)
        out = flat.new_zeros(rows * length, flat.size(-1))
        for row_places, grid_places in self.takes:
            out.index_copy_(0, row_places, flat.index_select(0, grid_places))
        return out.view(rows, length, -1)


def cost(rows: int, width: int, hidden: int) -> float:
    """The cost of a grid in tokens of the linear layers; attention adds the share width / (6 hidden) to it."""
    return rows * width * (1 + width / (6 * hidden))


def arrange(ids: torch.Tensor, rows: Sequence[Row], hidden: int) -> Layout | None:
    """The layout of `ids`, (R, L), whose real tokens are `rows`; `None` where it would save too little."""
    groups = group(rows, hidden)
    if all(len(one.rows) == 1 for one in groups):
        return None
    width = max(one.length for one in groups)
    bins = _fill(groups, width)
    if cost(len(bins), width, hidden) > MAX_RELATIVE_COST * cost(ids.size(0), ids.size(1), hidden):
        return None
    shape = (len(bins), width)
    source, position, branch = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    number = np.full(shape, -1, dtype=np.int64)
    takes: list[tuple[list[np.ndarray], list[np.ndarray]]] = [
        ([], []) for _ in range(max(len(one.rows) for one in groups))
    ]
    for g, members in enumerate(bins):
        begin = 0
        for n, one in enumerate(members):
            end = begin + one.shared
            for k, r in enumerate(one.rows):
                row, length = rows[r], len(rows[r].tokens)
                places = np.arange(length) + r * ids.size(1) + row.column
                # The shared tokens are counted with the first answer.
                first = 0 if k == 0 else one.shared
                here = np.arange(length) + begin
                here[one.shared :] = np.arange(end, end + length - one.shared)
                source[g, here[first:]] = places[first:]
                position[g, here[first:]] = np.arange(first, length) + row.position
                branch[g, here[one.shared :]] = k + 1
                takes[k][0].append(places)
                takes[k][1].append(here + g * width)
                end += length - one.shared
            number[g, begin:end] = n
            begin = end

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(ids.device)

    return Layout(
        tensor(source),
        tensor(position),
        tensor(number),
        tensor(branch),
        [(tensor(np.concatenate(a)), tensor(np.concatenate(b))) for a, b in takes],
    )


def group(rows: Sequence[Row], hidden: int) -> list[Group]:
    """The sorted rows, divided into groups of neighbours with the lowest total cost; empty rows are left out."""
    order = [r for r in range(len(rows)) if rows[r].tokens]
    order.sort(key=lambda r: (rows[r].position, rows[r].tokens))
    alike = [0]
    for a, b in pairwise(order):
        same = rows[a].position == rows[b].position
        alike.append(common_prefix_length(rows[a].tokens, rows[b].tokens) if same else 0)
    # For each number of rows: the lowest cost, where its last group begins, and that group.
    best: list[tuple[float, int, Group | None]] = [(0.0, 0, None)]
    for end in range(1, len(order) + 1):
        shared, total = len(rows[order[end - 1]].tokens), 0
        found: tuple[float, int, Group | None] | None = None
        for begin in range(end - 1, max(end - 1 - MAX_GROUP, -1), -1):
            if begin < end - 1:
                shared = min(shared, alike[begin + 1])
            if not shared:
                break
            total += len(rows[order[begin]].tokens)
            length = total - (end - begin - 1) * shared
            sum_ = best[begin][0] + cost(1, length, hidden)
            if found is None or sum_ < found[0]:
                found = (sum_, begin, Group(order[begin:end], shared, length))
        assert found is not None
        best.append(found)
    groups, end = [], len(order)
    while end:
        _, end, one = best[end]
        assert one is not None
        groups.append(one)
    return groups


def _fill(groups: list[Group], width: int) -> list[list[Group]]:
    """The groups in rows of `width`, placed by first fit, longest first."""
    bins: list[list[Group]] = []
    room: list[int] = []
    for one in sorted(groups, key=lambda one: -one.length):
        n = next((n for n, left in enumerate(room) if left >= one.length), len(bins))
        if n == len(bins):
            bins.append([])
            room.append(width)
        bins[n].append(one)
        room[n] -= one.length
    return bins
