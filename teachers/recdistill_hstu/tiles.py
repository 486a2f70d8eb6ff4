"""Cutting jagged attention into padded groups of small dense tiles.

A tile is some tokens of one history, sorted by how much they see, with the events that they attend to: a prefix, or,
under a span, the oldest events and a window. Tiles of similar shape are padded to one shape and computed together. So
no tensor holds a whole ``length x length`` matrix, a block of early tokens does not pay for late keys, and thousands of
short histories cost a few large matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recdistill_hstu.bias import Bias
from recdistill_hstu.layout import Layout

#: Most tokens in one tile; a longer history is cut into several, which skips about half of the masked scores.
TILE_TOKENS = 128
#: A group may hold this many padded scores per useful one, and this many in any case.
WASTE, FREE_WASTE = 0.25, 1 << 14


@dataclass(frozen=True)
class TileGroup:
    """``B`` tiles padded to ``Q`` tokens and ``K`` events.

    Attributes:
        query: ``[B, Q]`` int64 places among the tokens asked for; 0 where padded.
        slot: ``[B * Q]`` int64, where results go: the place, or ``S`` where padded.
        key: ``[B, K]`` int64 events; 0 where padded.
        place: ``[B, K]`` int64 places of these in their history; beyond all histories where padded.
        visible: ``[B, Q]`` int64 number of keys that each token sees; 0 where padded.
    """

    query: Tensor
    slot: Tensor
    key: Tensor
    place: Tensor
    visible: Tensor

    def codes(self, layout: Layout, bias: Bias) -> Tensor:
        """``[B, Q, K]`` int32 rows of the bias table, 1 + those of :meth:`Bias.codes`; 0 where a key is not seen."""
        place = self.place[:, None]
        distance = layout.position[self.query][..., None] - place
        elapsed = None
        if bias.time is not None:
            elapsed = layout.time[self.query][..., None] - layout.event_time[self.key][:, None]
        return (bias.codes(distance, elapsed) + 1).masked_fill_(~layout.span.has(place, self.visible[..., None]), 0)


def seeing_tokens(layout: Layout) -> Tensor:
    """int64 places, among the tokens asked for, of those that see an event: by history, then by what they see."""
    seeing = layout.visible.nonzero().flatten()
    rank = layout.history[seeing] * (layout.longest + 1) + layout.visible[seeing]
    return seeing[rank.argsort(stable=True)]


def most_attended(layout: Layout) -> Tensor:
    """``[U]`` most events of each history that a tile of its tokens attends to, at least 1; see :func:`_cut`."""
    lengths = (layout.offsets[1:] - layout.offsets[:-1]).clamp(min=1)
    if layout.span.recent:
        lengths = lengths.clamp(max=layout.span.recent + layout.span.oldest + TILE_TOKENS)
    return lengths


def plan_tiles(layout: Layout, order: Tensor, *, heads: int, budget: int) -> list[TileGroup]:
    """Groups that cover every pair of a token of ``order`` and an event that it sees, each pair once.

    Args:
        layout: tokens asked for.
        order: some of :func:`seeing_tokens`, in their order.
        heads: attention heads, which multiply the scores of a tile.
        budget: most scores of a group. A single token with all of its keys is computed even where it exceeds it.
    """
    start, size, keys, oldest, first = _cut(layout, order, heads, budget)
    begin = layout.offsets[layout.history[order[start]]]
    groups, widths, heights = [], keys.tolist(), size.tolist()
    for members in group_similar(widths, heights, budget // heads):
        index = torch.tensor(members, device=order.device)
        here = torch.arange(max(heights[tile] for tile in members), device=order.device)
        padded = here >= size[index][:, None]
        query = order[torch.where(padded, 0, start[index][:, None] + here)]
        column = torch.arange(max(widths[tile] for tile in members), device=order.device)
        before, real = oldest[index][:, None], column < keys[index][:, None]
        place = torch.where(column < before, column, column - before + first[index][:, None])
        groups.append(
            TileGroup(
                query=query.masked_fill(padded, 0),
                slot=query.masked_fill(padded, layout.num_asked).flatten(),
                key=torch.where(real, begin[index][:, None] + place, 0),
                place=torch.where(real, place, layout.longest),
                visible=layout.visible[query].masked_fill_(padded, 0),
            )
        )
    return groups


def _cut(layout: Layout, order: Tensor, heads: int, budget: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tiles: ``start [M]`` in ``order``, ``size [M]`` in tokens, ``keys [M]``, of which ``oldest [M]`` come first, and
    ``first [M]``, the place of the next."""
    near = layout.history[order]
    if layout.span.recent:  # windows of tokens that lie farther apart are no window together
        near = near * (layout.longest // TILE_TOKENS + 1) + layout.visible[order] // TILE_TOKENS
    _, tokens = torch.unique_consecutive(near, return_counts=True)
    begin = tokens.cumsum(0) - tokens
    most = (budget // (heads * most_attended(layout)[layout.history[order[begin]]])).clamp(min=1, max=TILE_TOKENS)
    even = _ceil_divide(tokens, _ceil_divide(tokens, most))
    pieces = _ceil_divide(tokens, even)
    owner = torch.repeat_interleave(torch.arange(len(tokens), device=order.device), pieces)
    ordinal = torch.arange(len(owner), device=order.device) - (pieces.cumsum(0) - pieces)[owner]
    start = begin[owner] + ordinal * even[owner]
    size = torch.minimum(even[owner], (begin + tokens)[owner] - start)
    first = layout.span.first(layout.visible[order[start]])
    oldest = first.clamp(max=layout.span.oldest)
    keys = oldest + layout.visible[order[start + size - 1]] - first
    return start, size, keys, oldest, first


def group_similar(keys: list[int], sizes: list[int], budget: int) -> list[list[int]]:
    """Tiles of similar shape, as lists of their numbers; a group's padded area is at most ``budget`` or one tile."""
    ranked = sorted(range(len(keys)), key=lambda tile: (-_coarse(keys[tile]), -sizes[tile]))
    groups: list[list[int]] = []
    members: list[int] = []
    tall = wide = useful = 0
    for tile in ranked:
        tall, wide, useful = max(tall, sizes[tile]), max(wide, keys[tile]), useful + sizes[tile] * keys[tile]
        area = tall * wide * (len(members) + 1)
        if members and (area > budget or area - useful > WASTE * useful + FREE_WASTE):
            groups.append(members)
            members = []
            tall, wide, useful = sizes[tile], keys[tile], sizes[tile] * keys[tile]
        members.append(tile)
    return [*groups, members] if members else groups


def _coarse(keys: int) -> int:
    """Number of a size class; classes are about a quarter wide, so that sizes within one may be sorted by tokens."""
    bits = max(keys, 8).bit_length()
    return 4 * bits + (max(keys, 8) >> (bits - 3))


def _ceil_divide(a: Tensor, b: Tensor) -> Tensor:
    return (a + b - 1) // b
