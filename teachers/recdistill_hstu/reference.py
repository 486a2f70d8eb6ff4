"""Attention by plain loops over histories and rows: slow, quadratic in memory, and easy to check by eye."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from recdistill_hstu.bias import Bias
from recdistill_hstu.layout import Layout


class ReferenceAttention:
    """See :mod:`recdistill_hstu.attention`; every other backend is tested against this one.

    Args:
        layout: tokens of the batch.
        softmax: softmax attention instead of SiLU attention.
    """

    def __init__(self, layout: Layout, *, softmax: bool) -> None:
        self.layout = layout
        self.softmax = softmax
        self.bounds = layout.offsets.tolist()
        self.rows = layout.history[layout.num_events :].tolist()
        self.ends = layout.visible[layout.num_events :].tolist()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
        """``[T, H, d]`` queries, keys, values -> ``[T, H, d]``."""
        parts = []
        for begin, end in pairwise(self.bounds):
            events = torch.arange(begin, end, device=q.device)
            causal = events[:, None] >= events
            parts.append(self._dense(q, k, v, bias, events, events, causal))
        for row, (history, end) in enumerate(zip(self.rows, self.ends, strict=True)):
            begin = self.bounds[history]
            itself = torch.tensor([self.layout.num_events + row], device=q.device)
            keys = torch.cat([torch.arange(begin, begin + end, device=q.device), itself])
            parts.append(self._dense(q, k, v, bias, itself, keys, torch.ones_like(keys, dtype=torch.bool)[None]))
        return torch.cat(parts) if parts else torch.zeros_like(q)

    def _dense(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """``[I, H, d]`` of tokens ``query [I]`` over tokens ``key [J]`` where ``mask [I, J]``."""
        position, time = self.layout.position, self.layout.time
        distance = (position[query][:, None] - position[key]).clamp(min=0)
        score = torch.einsum("ihd,jhd->hij", q[query], k[key])
        rab = bias.at(distance, time[query][:, None] - time[key], q)
        if self.softmax:
            score = score / math.sqrt(q.shape[-1]) + rab
            weight = score.masked_fill(~mask, -math.inf).softmax(-1)
        else:
            weight = functional.silu(score + rab) * mask
        return torch.einsum("hij,jhd->ihd", weight, v[key])
