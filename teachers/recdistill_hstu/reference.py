"""Attention by a plain loop over tokens: slow, without any batching, and easy to check by eye."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from recdistill_hstu.attention import Memo
from recdistill_hstu.bias import Bias
from recdistill_hstu.layout import Layout


class ReferenceAttention:
    """See :mod:`recdistill_hstu.attention`; every other backend is tested against this one.

    Args:
        layout: tokens asked for.
        softmax: softmax attention instead of SiLU attention.
    """

    def __init__(self, layout: Layout, *, softmax: bool) -> None:
        self.layout = layout
        self.softmax = softmax

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias, memo: Memo | None = None) -> Tensor:
        """``[S, H, d]`` queries, ``[T, H, d]`` keys and values -> ``[S, H, d]``."""
        bias.require(self.layout.longest)
        if not self.layout.num_asked:
            return q.clone()
        return torch.stack([self._one(asked, q[asked], k, v, bias) for asked in range(self.layout.num_asked)])

    def _one(self, asked: int, query: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
        """``[H, d]`` of one token with ``query [H, d]``."""
        layout = self.layout
        begin, end = int(layout.offsets[layout.history[asked]]), int(layout.visible[asked])
        place = torch.arange(end, device=query.device)
        place = place[layout.span.has(place, layout.visible[asked])]
        keys, distance = begin + place, layout.position[asked] - place
        elapsed = layout.time[asked] - layout.event_time[keys]
        if asked >= layout.asked_events:
            keys = torch.cat([keys, layout.token[asked : asked + 1]])
            distance, elapsed = functional.pad(distance, (0, 1)), functional.pad(elapsed, (0, 1))
        score, rab = torch.einsum("hd,jhd->hj", query, k[keys]), bias.at(distance, elapsed, query)
        if self.softmax:
            weight = (score / math.sqrt(query.shape[-1]) + rab).softmax(-1)
        else:
            weight = functional.silu(score + rab)
        return torch.einsum("hj,jhd->hd", weight, v[keys])
