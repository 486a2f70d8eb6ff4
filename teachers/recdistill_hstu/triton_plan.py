"""Which block of queries reads which keys, and the other way round: what the Triton kernels are told of a layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recdistill_hstu.layout import Layout


@dataclass(frozen=True)
class TritonPlan:
    """Blocks of one layout, those with most work first, so that no long one runs last and alone.

    Attributes:
        order: ``[R]`` int32 places, among the tokens asked for, of those that see an event: sorted by history, then by
            what they see.
        visible, position: ``[R]`` int32 of those tokens. moment: ``[R]`` int64 ms.
        event_time: ``[E]`` int64 ms.
        query_blocks: ``[B, 6]`` int32: first row, rows, first event of the history, end of the oldest places, and start
            and end of the other places that are attended to.
        key_blocks: ``[C, 5]`` int32: first event of the history, first place, places, and first and last row + 1 of the
            queries that see any of them.
    """

    order: Tensor
    visible: Tensor
    position: Tensor
    moment: Tensor
    event_time: Tensor
    query_blocks: Tensor
    key_blocks: Tensor

    @classmethod
    def of(cls, layout: Layout, queries: int, keys: int) -> TritonPlan:
        """The plan for blocks of ``queries`` tokens and of ``keys`` events."""
        seeing = layout.visible.nonzero().flatten()
        rank = layout.history[seeing] * (layout.longest + 1) + layout.visible[seeing]
        rank, sorting = rank.sort(stable=True)
        order = seeing[sorting]
        return cls(
            order=order.int(),
            visible=layout.visible[order].int(),
            position=layout.position[order].int(),
            moment=layout.time[order].contiguous(),
            event_time=layout.event_time.contiguous(),
            query_blocks=_query_blocks(layout, order, queries),
            key_blocks=_key_blocks(layout, rank, keys),
        )


def _query_blocks(layout: Layout, order: Tensor, size: int) -> Tensor:
    counts = torch.bincount(layout.history[order], minlength=len(layout.offsets) - 1)
    owner, ordinal = _blocks(counts, size)
    row = (counts.cumsum(0) - counts)[owner] + ordinal * size
    rows = (counts[owner] - ordinal * size).clamp(max=size)
    stop = layout.visible[order[row + rows - 1]]
    start = layout.span.first(layout.visible[order[row]])
    oldest = start.clamp(max=layout.span.oldest)
    table = torch.stack([row, rows, layout.offsets[owner], oldest, start, stop], 1)
    return table[(oldest + stop - start).argsort(descending=True, stable=True)].int().contiguous()


def _key_blocks(layout: Layout, rank: Tensor, size: int) -> Tensor:
    """``rank [R]``: history and visible events of each query in one number, ascending."""
    owner, ordinal = _blocks(layout.offsets[1:] - layout.offsets[:-1], size)
    place, group = ordinal * size, owner * (layout.longest + 1)
    count = ((layout.offsets[1:] - layout.offsets[:-1])[owner] - place).clamp(max=size)
    furthest = torch.full_like(place, layout.longest)
    if layout.span.recent:
        reached = (place + count - 1 + layout.span.recent).clamp(max=layout.longest)
        furthest = torch.where(place < layout.span.oldest, furthest, reached)
    start = torch.searchsorted(rank, group + place, right=True)
    stop = torch.searchsorted(rank, group + furthest, right=True)
    table = torch.stack([layout.offsets[owner], place, count, start, stop], 1)
    table = table[(stop - start).argsort(descending=True, stable=True)]
    return table[table[:, 4] > table[:, 3]].int().contiguous()


def _blocks(counts: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """``owner [B]`` and ``ordinal [B]`` of each block, where ``counts`` are cut into blocks of ``size``."""
    pieces = (counts + size - 1) // size
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), pieces)
    return owner, torch.arange(len(owner), device=counts.device) - (pieces.cumsum(0) - pieces)[owner]
