"""Cutting jagged attention into parts that xformers' masks describe, in which queries share the keys that they see.

No key is copied for a single query. In a part each query stands once, and each event once or, in a band, twice: so no
tensor grows faster than the tokens do. There are about as many parts as the number of distinct prefixes of the history
with most of them has binary digits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from recdistill_hstu.layout import Layout, Span, ranges
from recdistill_hstu.merged import Part
from recdistill_hstu.xformers_kernels import load

#: Most blocks of a part: a flash backward pass rounds each one up to 128 queries, in a buffer of float32.
BLOCKS = 256
#: Fewest successive events that attend to each other under a causal mask of their own.
RUN = 16


def span_parts(lengths: list[int], span: Span, device: torch.device) -> list[Part]:
    """Parts that hold each pair of an event and one that it attends to under ``span``, each once, for whole histories.

    With ``K1`` recent and ``K2`` oldest: a band of ``K1``, for every event; a triangle, in which event ``K1 + i`` sees
    the oldest ``i + 1``; and a block, in which the events after that see the oldest ``K2``. Flash kernels take only
    triangles with as many queries as keys, hence three parts and not two.

    Args:
        lengths: of the histories, each at least 1.
        span: with ``recent``.
        device: of the parts.
    """
    masks = load("xformers.ops.fmha.attn_bias")
    everything = torch.arange(sum(lengths), device=device)
    band = masks.BlockDiagonalCausalMask.from_seqlens(lengths, device=device).make_local_attention(span.recent)
    parts = [Part(everything, everything, band)]
    triangle: list[Tensor] = []
    block: list[tuple[Tensor, Tensor]] = []
    stop = 0
    for length in lengths:
        start, stop = stop, stop + length
        history = everything[start:stop]
        oldest = history[: min(span.oldest, max(len(history) - span.recent, 0))]
        later = history[span.recent : span.recent + len(oldest)]
        if len(oldest):
            triangle.append(torch.stack([later, oldest]))
        rest = history[span.recent + len(oldest) :]
        if len(oldest) and len(rest):
            block.append((rest, oldest))
    if triangle:
        query, key = torch.cat(triangle, 1)
        mask = masks.BlockDiagonalCausalMask.from_seqlens([part.shape[1] for part in triangle], device=device)
        parts.append(Part(query, key, mask))
    if block:
        queries, keys = zip(*block, strict=True)
        sizes = [len(part) for part in queries], [len(part) for part in keys]
        mask = masks.BlockDiagonalMask.from_seqlens(*sizes, device=device)
        parts.append(Part(torch.cat(queries), torch.cat(keys), mask))
    return parts


def token_parts(layout: Layout, since: int, base: int) -> list[Part]:
    """Parts that hold each pair of a token and an event that it attends to, each once, whichever tokens are asked for.

    Runs of successive events attend to each other under a causal mask or, with a span, a band. All that tokens see
    besides are prefixes of histories and, under a span, of the stretches of ``recent`` events into which these are cut:
    a token's recent events are the first of the stretch in which the newest one lies, and the last of the one before.

    Args:
        layout: tokens asked for.
        since: those from here on are in the parts.
        base: in which they are counted from here on.
    """
    visible, begin = layout.visible[since:], layout.offsets[layout.history[since:]]
    query, recent = torch.arange(since, layout.num_asked, device=visible.device) - base, layout.span.recent
    before, parts = _runs(layout, since, query)
    if not recent:
        return parts + prefix_parts(query, begin, before)
    first = layout.span.first(visible)
    in_run = before < visible
    cell = (visible - 1).clamp(min=0) // recent * recent
    parts += prefix_parts(query, begin + cell, torch.where(in_run, 0, visible - cell))
    parts += prefix_parts(query, begin + cell - 1, torch.where(in_run, 0, cell - first), step=-1)
    return parts + prefix_parts(query, begin, first.clamp(max=layout.span.oldest))


def prefix_parts(query: Tensor, start: Tensor, count: Tensor, step: int = 1) -> list[Part]:
    """Parts in which query ``i`` sees the events ``start[i]``, ``start[i] + step``, ..., ``count[i]`` of them.

    Of the queries that start at one place, those with equal counts are a group; group ``r`` sees the segments 0 to
    ``r``, into which the counts cut the events. In the first part each group sees its own segment. In the part of level
    ``l`` those groups whose number has bit ``l`` see the ``2 ** l`` segments before that bit's: each number is the sum
    of its bits, so each pair is in one part.

    Args:
        query: ``[M]`` int64, distinct. start: ``[M]`` int64 events. count: ``[M]`` int64, >= 0.
        step: 1, or -1 where the events are counted backwards.
    """
    seeing = count.nonzero().flatten()
    if not len(seeing):
        return []
    rank, order = (start[seeing] * (int(count.max()) + 1) + count[seeing]).sort(stable=True)
    seeing = seeing[order]
    group, size = _consecutive(rank)
    newest = size.cumsum(0) - 1
    start, count = start[seeing][newest], count[seeing][newest]
    same, groups = _consecutive(start)
    head, groups = (groups.cumsum(0) - groups)[same], groups[same]
    number = torch.arange(len(start), device=start.device) - head
    seen = torch.where(number == 0, 0, count.roll(1))
    begin, length = start + step * seen, count - seen
    everything = torch.ones_like(number, dtype=torch.bool)
    levels = [(everything, everything, head + number)]
    for level in range(int(groups.max() - 1).bit_length()):
        side = number >> level
        has_bit = side % 2 == 1
        levels.append((has_bit, ~has_bit & (((side + 1) << level) < groups), head + (side >> 1)))
    parts = []
    for asking, held, block in levels:
        key = torch.repeat_interleave(begin[held], length[held])
        key += step * ranges(torch.zeros_like(length[held]), length[held])
        sizes = _sums(block[asking], size[asking]), _sums(block[held], length[held])
        parts += _cut(query[seeing[asking[group]]], key, *sizes, "BlockDiagonalMask")
    return parts


def _runs(layout: Layout, since: int, query: Tensor) -> tuple[Tensor, list[Part]]:
    """``[S - since]`` how many events a token sees before its run begins, or all that it sees where it is in none; and
    the parts in which the events of a run attend to each other, or, under a span, to all of their recent events.

    Args:
        layout: tokens asked for. since: the first of them to look at. query: ``[S - since]`` their numbers in parts.
    """
    events = slice(since, layout.asked_events)
    token, history, place = layout.token[events], layout.history[events], layout.position[events]
    before = layout.visible[since:].clone()
    if not len(token):
        return before, []
    breaks = (token.diff() != 1) | (history.diff() != 0)
    run, length = _consecutive(functional.pad(breaks.cumsum(0), (1, 0)))
    first = length.cumsum(0) - length
    reach = place[first].clamp(max=max(layout.span.recent - 1, 0))
    chosen = (length >= RUN) & (reach <= length)  # a band copies, for each run, what it reaches back to
    inside = chosen[run]
    before[: len(token)] = torch.where(inside, place[first][run], before[: len(token)])
    query, sizes = query[: len(token)][inside], length[chosen].tolist()
    if not layout.span.recent:
        return before, _cut(query, token[inside], sizes, sizes, "BlockDiagonalCausalMask")
    reached = (length + reach)[chosen]
    key = ranges((token[first] - reach)[chosen], reached)
    return before, _cut(query, key, sizes, reached.tolist(), "BlockDiagonalMask", layout.span.recent)


def _cut(query: Tensor, key: Tensor, queries: list[int], keys: list[int], mask: str, window: int = 0) -> list[Part]:
    """Parts of at most :data:`BLOCKS` blocks, which have so many ``queries`` and ``keys`` each, in order.

    Args:
        query: ``[sum(queries)]`` int64. key: ``[sum(keys)]`` int64. queries, keys: of each block.
        mask: name of the class. window: of a band that ends with the last query and the last key; 0: none.
    """
    make = getattr(load("xformers.ops.fmha.attn_bias"), mask).from_seqlens
    parts, asked, held = [], 0, 0
    for block in range(0, len(queries), BLOCKS):
        here = queries[block : block + BLOCKS], keys[block : block + BLOCKS]
        made = make(*here, device=query.device)
        more = asked + sum(here[0]), held + sum(here[1])
        parts.append(
            Part(
                query[asked : more[0]],
                key[held : more[1]],
                made.make_local_attention_from_bottomright(window) if window else made,
            )
        )
        asked, held = more
    return parts


def _consecutive(x: Tensor) -> tuple[Tensor, Tensor]:
    """``[M]`` which run of equal values each of ``x [M]`` is in, and how long each run is."""
    unique: Any = torch.unique_consecutive  # torch ships it without types
    _, run, length = unique(x, return_inverse=True, return_counts=True)
    return run, length


def _sums(block: Tensor, amount: Tensor) -> list[int]:
    """Sums of ``amount [M]`` over runs of equal ``block [M]``."""
    run, length = _consecutive(block)
    found: list[int] = torch.zeros_like(length).index_add_(0, run, amount).tolist()
    return found
