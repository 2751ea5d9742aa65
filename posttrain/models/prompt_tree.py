"""The layout of rows of tokens in which a common beginning is there once.

Two answers to one prompt make `prompt | answer 1 | answer 2`, in one row: every token keeps the position that it had,
and no answer sees the other. Rows are grouped where it saves most; groups fill the rows of a grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from posttrain.data.prompts import common_prefix_length

# A layout must compute less than this share of what the rows as they are would.
MAX_RELATIVE_COST = 0.9
# Most rows in a group.
MAX_GROUP = 64


@dataclass(frozen=True)
class Row:
    """The real tokens of a row: its first one is in `column`, and has position `position`."""

    tokens: list[int]
    column: int
    position: int


@dataclass(frozen=True)
class Group:
    """Rows (by number) whose first `shared` tokens are the same, and the `length` of what is left to compute."""

    rows: list[int]
    shared: int
    length: int


@dataclass(frozen=True)
class Layout:
    """A grid of (G, M) tokens that has all of (R, L).

    `source`: (G, M), where each token of the grid is in the flat rows. `position`: (G, M). `group`, `branch`:
    (G, M), the group of a token, -1 for padding, and its answer, 0 for what all answers share. `takes`: for the
    first, second ... answers of all groups, where their tokens are in the flat rows and in the flat grid: in each
    pair no place comes twice, so that the gradient of every token is summed in one order.
    """

    source: torch.Tensor
    position: torch.Tensor
    group: torch.Tensor
    branch: torch.Tensor
    takes: list[tuple[torch.Tensor, torch.Tensor]]

    def attention_mask(self, window: int | None = None) -> torch.Tensor:
        """(G, 1, M, M), whether a token sees another: of its own group, shared or of its own answer, and not later.

        With a sliding `window` only those less than `window` positions before it. Padding sees itself alone.
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
    """The cost of a grid in tokens: linear layers, and attention, of which a layer has width / (6 hidden) as much."""
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
                # The first answer brings what is shared with it.
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
    """The rows, sorted, in the runs of neighbours that together cost least; rows without tokens are left out."""
    order = [r for r in range(len(rows)) if rows[r].tokens]
    order.sort(key=lambda r: (rows[r].position, rows[r].tokens))
    alike = [0, *(_common_prefix_length(rows[a], rows[b]) for a, b in pairwise(order))]
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
    """The groups in as few rows of `width` as first fit, longest first, needs."""
    bins: list[list[Group]] = []
    room: list[int] = []
    for one in sorted(groups, key=lambda one: -one.length):
        n = next((n for n, left in enumerate(room) if left >= one.length), None)
        if n is None:
            bins.append([one])
            room.append(width - one.length)
        else:
            bins[n].append(one)
            room[n] -= one.length
    return bins


def _common_prefix_length(first: Row, second: Row) -> int:
    """How many tokens both begin with, at the same positions."""
    return 0 if first.position != second.position else common_prefix_length(first.tokens, second.tokens)
