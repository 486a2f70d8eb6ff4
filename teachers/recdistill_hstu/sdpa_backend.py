"""Softmax attention by torch's ``scaled_dot_product_attention``, which picks the kernel that suits device and mask.

Whole histories without bias and span go through its causal kernels, with no mask in memory. Everything else is computed
in the tiles of :mod:`recdistill_hstu.tiles`, each with a mask that holds the bias; tiles are computed again in the
backward pass, so that no mask outlives its tile.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from recdistill_hstu.attention import Memo
from recdistill_hstu.bias import Bias
from recdistill_hstu.layout import Layout
from recdistill_hstu.own import wide
from recdistill_hstu.tiles import TileGroup, group_similar, plan_tiles, seeing_tokens


class SdpaAttention:
    """See :mod:`recdistill_hstu.attention`. Softmax attention, with or without relative bias, under any span.

    Args:
        layout: tokens asked for.
        heads: attention heads.
        budget: most scores of a group of tiles.
    """

    def __init__(self, layout: Layout, *, heads: int, budget: int) -> None:
        self.layout = layout
        self.heads, self.budget = heads, budget
        order = seeing_tokens(layout)
        is_event = order < layout.asked_events
        self.events, self.rows = order[is_event], order[~is_event]
        self.groups: dict[bool, list[TileGroup]] = {}
        self.blocks: list[Tensor] | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias, memo: Memo | None = None) -> Tensor:
        """``[S, H, d]`` queries, ``[T, H, d]`` keys and values -> ``[S, H, d]``."""
        bias.require(self.layout.longest)
        layout, parts, places = self.layout, [], []
        whole = layout.asked_events == layout.num_events and not layout.span.recent
        if whole and bias.position is None and bias.time is None:
            for index in self._causal_blocks():
                parts.append(_causal(index, q, k, v))
                places.append(index)
        else:
            for group in self._tiles(of_rows=False):
                parts.append(_again(self._tile, group, q, k, v, bias, False))
                places.append(group.slot)
        for group in self._tiles(of_rows=True):
            parts.append(_again(self._tile, group, q, k, v, bias, True))
            places.append(group.slot)
        rows = v.index_select(0, layout.token[layout.asked_events :])  # right for a row that sees nothing but itself
        out = torch.cat([q.new_zeros(layout.asked_events, *q.shape[1:]), rows, q.new_zeros(1, *q.shape[1:])])
        if parts:
            out = out.index_copy(0, torch.cat([place.flatten() for place in places]), torch.cat(parts))
        else:  # of processes that train together this one has no event: the others wait for a gradient of each weight
            out = out + 0.0 * (q.sum() + k.sum() + bias.own(q))
        return out[:-1]

    def _causal_blocks(self) -> list[Tensor]:
        """``[B, L]`` int64 events of histories of similar length; the place of padding, which comes last, is ``S``."""
        if self.blocks is None:
            offsets = self.layout.offsets
            lengths = (offsets[1:] - offsets[:-1]).tolist()
            known = [history for history, length in enumerate(lengths) if length]
            sizes = [lengths[history] for history in known]
            self.blocks = []
            for members in group_similar(sizes, sizes, self.budget // self.heads):
                chosen = torch.tensor([known[member] for member in members], device=offsets.device)
                place = torch.arange(max(sizes[member] for member in members), device=offsets.device)
                real = place < (offsets[1:] - offsets[:-1])[chosen][:, None]
                self.blocks.append(torch.where(real, offsets[chosen][:, None] + place, self.layout.num_asked))
        return self.blocks

    def _tiles(self, *, of_rows: bool) -> list[TileGroup]:
        if of_rows not in self.groups:
            order = self.rows if of_rows else self.events
            self.groups[of_rows] = plan_tiles(self.layout, order, heads=self.heads, budget=self.budget)
        return self.groups[of_rows]

    def _tile(self, group: TileGroup, q: Tensor, k: Tensor, v: Tensor, bias: Bias, with_own: bool) -> Tensor:
        """``[B * Q, H, d]`` of a group of tiles; with each token's own key besides, where it is a row."""
        layout = self.layout
        place = group.place[:, None]
        seen = layout.span.has(place, group.visible[..., None])
        mask = torch.zeros(seen.shape, dtype=wide(q.dtype), device=q.device)
        if bias.position is not None or bias.time is not None:
            distance = (layout.position[group.query][..., None] - place).clamp(min=0)
            elapsed = layout.time[group.query][..., None] - layout.event_time[group.key][:, None]
            mask = bias.at(distance, elapsed, mask)
        mask = mask.masked_fill(~seen, -torch.inf)
        keys, values = _gather(k, group.key), _gather(v, group.key)
        if with_own:
            here = torch.eye(group.query.shape[1], dtype=torch.bool, device=q.device)
            own = bias.own(mask).masked_fill(~here, -torch.inf)
            mask = torch.cat([mask, own.expand(len(mask), -1, -1)], 2)
            token = layout.token[group.query]
            keys, values = torch.cat([keys, _gather(k, token)], 2), torch.cat([values, _gather(v, token)], 2)
        else:  # a padded token must see something, or its softmax is undefined
            mask = torch.where((group.visible == 0)[..., None], torch.zeros_like(mask), mask)
        mask = mask[:, None].to(q.dtype).expand(-1, q.shape[1], -1, -1)
        found = functional.scaled_dot_product_attention(_gather(q, group.query), keys, values, attn_mask=mask)
        return found.transpose(1, 2).flatten(0, 1)


def _causal(index: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``[B * L, H, d]`` of whole histories, whose events are at ``index [B, L]``; padding sees anything."""
    if len(index) == 1:  # one history: no copy
        first, last = int(index[0, 0]), int(index[0, -1]) + 1
        query, key, value = (x[first:last].transpose(0, 1)[None] for x in (q, k, v))
    else:
        query, key, value = (_gather(x, index.clamp(max=len(q) - 1)) for x in (q, k, v))
    found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return found.transpose(1, 2).flatten(0, 1)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """``[*, H, d]`` at ``index [B, I]`` -> ``[B, H, I, d]``."""
    return x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:]).transpose(1, 2)


def _again(work: Callable[..., Tensor], *given: object) -> Tensor:
    """``work(*given)``, whose intermediate results are not kept but computed again for the backward pass."""
    found: Tensor = checkpoint(work, *given, use_reentrant=False, preserve_rng_state=False)
    return found
