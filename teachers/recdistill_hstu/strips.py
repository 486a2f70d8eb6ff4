"""Long histories in strips: some tokens against runs of neighbouring events, whose scores stay in a cache.

Short histories are batched instead, see :mod:`recdistill_hstu.tiles`.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import Tensor

from recdistill_hstu.bias import bucket_edges
from recdistill_hstu.layout import Layout

#: Most tokens of a strip and most events of a piece: their scores, for a few heads, fit into a second-level cache.
STRIP_TOKENS, PIECE_EVENTS = 128, 512


@dataclass(frozen=True)
class Piece:
    """A run of events that a strip attends to.

    Attributes:
        first, stop: events ``first:stop`` among all.
        place: place of the first in its history.
        whole: whether every token of the strip sees every one of them.
        buckets: least and greatest time bucket of their pairs with the strip's tokens; None if some token is not later
            than some event.
    """

    first: int
    stop: int
    place: int
    whole: bool
    buckets: tuple[int, int] | None


@dataclass(frozen=True)
class Strip:
    """Up to ``STRIP_TOKENS`` tokens of one history, sorted by what they see.

    Attributes:
        query: ``[Q]`` int64 places among the tokens asked for.
        visible, position, time: ``[Q]`` of those, as in the layout.
        steady: whether each position is one more than the one before.
        pieces: disjoint; together they hold every event that some token of the strip sees.
    """

    query: Tensor
    visible: Tensor
    position: Tensor
    time: Tensor
    steady: bool
    pieces: tuple[Piece, ...]


def longest_tiled(*, heads: int, budget: int) -> int:
    """Most events that a token may attend to in a tile; beyond that its history is cut into strips."""
    return min(PIECE_EVENTS, budget // heads)


def strip_size(*, heads: int, budget: int) -> tuple[int, int]:
    """Tokens of a strip and events of a piece, such that their scores are at most ``budget``, or those of one pair."""
    tokens = min(max(budget // (heads * PIECE_EVENTS), 1), STRIP_TOKENS)
    return tokens, min(max(budget // (heads * tokens), 1), PIECE_EVENTS)


def plan_strips(layout: Layout, order: Tensor, *, heads: int, budget: int) -> list[Strip]:
    """Strips that cover every pair of a token of ``order`` and an event that it sees, each pair once.

    Under a span, tokens of a strip are no farther apart than its window or a strip is long: what lies between windows
    that lie far apart is left out.

    Args:
        layout: tokens asked for.
        order: int64 places of tokens that see events, sorted by history and then by what they see.
        heads: attention heads. budget: most scores of a strip and a piece, heads included.
    """
    tokens, events = strip_size(heads=heads, budget=budget)
    _, counts = torch.unique_consecutive(layout.history[order], return_counts=True)
    strips = []
    stop = 0
    for count in counts.tolist():
        start, stop = stop, stop + count
        visible = layout.visible[order[start:stop]].tolist()
        reach = max(layout.span.recent, STRIP_TOKENS) if layout.span.recent else visible[-1]
        at = 0
        while at < count:
            end = min(at + tokens, bisect_right(visible, visible[at] + reach))
            strips.append(_strip(layout, order[start + at : start + end], events))
            at = end
    return strips


def _strip(layout: Layout, query: Tensor, events: int) -> Strip:
    visible, position, time = layout.visible[query], layout.position[query], layout.time[query]
    begin = int(layout.offsets[layout.history[query[0]]])
    few, most = int(visible[0]), int(visible[-1])
    first = max(few - layout.span.recent, 0) if layout.span.recent else 0
    oldest = min(layout.span.oldest, first)
    soonest, latest = int(time.min()), int(time.max())
    pieces = []
    for start, end in ((0, oldest), (first, most)):
        for place in range(start, end, events):
            stop = min(place + events, end)
            moments = layout.event_time[begin + place : begin + stop]
            within = stop <= layout.span.oldest or not layout.span.recent or place >= most - layout.span.recent
            buckets = _bucket_range(soonest - int(moments.max()), latest - int(moments.min()))
            pieces.append(Piece(begin + place, begin + stop, place, stop <= few and within, buckets))
    steady = bool((position.diff() == 1).all())
    return Strip(query, visible, position, time, steady, tuple(pieces))


def _bucket_range(least: int, greatest: int) -> tuple[int, int] | None:
    if least < 0:
        return None
    edges = bucket_edges()
    return bisect_right(edges, least) - 1, bisect_right(edges, greatest) - 1
