"""Softmax attention by xformers' ``memory_efficient_attention``; its mask classes describe the jagged batch.

Kernels run on CUDA only. Masks are plain Python and work, and are tested, anywhere.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recdistill_hstu.bias import Bias
from recdistill_hstu.layout import Layout

Kernel = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


def installed() -> bool:
    """Whether the package xformers is there; does not import it."""
    return importlib.util.find_spec("xformers") is not None


def load(module: str) -> Any:
    """An xformers module. A build for another torch warns on import; that changes nothing here and is silenced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def memory_efficient(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """``[1, M, H, d]`` -> ``[1, M, H, d]`` by xformers' kernel, scaled by ``1 / sqrt(d)``."""
    out: Tensor = load("xformers.ops").memory_efficient_attention(q, k, v, attn_bias=mask)
    return out


class XformersAttention:
    """See :mod:`recdistill_hstu.attention`. Softmax without additive bias.

    Histories attend among themselves under a block-diagonal causal mask. Each candidate is a block of one query over a
    copy of the keys it sees, its own key last; so memory grows with the sum of ``row_end`` over the rows.

    Args:
        layout: tokens of the batch.
        kernel: computes attention under a mask; tests pass one that runs on a CPU.

    Attributes:
        causal: mask of the events, or None where the batch has none.
        single: mask of the candidates, or None where the batch has no rows.
        keys: ``[M]`` int64 tokens that are the candidates' keys, block after block.
    """

    def __init__(self, layout: Layout, kernel: Kernel = memory_efficient) -> None:
        masks = load("xformers.ops.fmha.attn_bias")
        self.layout, self.kernel = layout, kernel
        device = layout.history.device
        lengths = [length for length in (layout.offsets[1:] - layout.offsets[:-1]).tolist() if length]
        self.causal = masks.BlockDiagonalCausalMask.from_seqlens(lengths, device=device) if lengths else None
        self.keys, counts = _candidate_keys(layout)
        ones = [1] * len(counts)
        self.single = masks.BlockDiagonalMask.from_seqlens(ones, counts.tolist(), device=device) if ones else None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
        """``[T, H, d]`` queries, keys, values -> ``[T, H, d]``; ``bias`` must be empty."""
        if bias.position is not None or bias.time is not None:
            raise ValueError("xformers attention has no additive bias")
        events = self.layout.num_events
        parts = []
        if self.causal is not None:
            parts.append(self.kernel(q[None, :events], k[None, :events], v[None, :events], self.causal)[0])
        if self.single is not None:
            parts.append(self.kernel(q[None, events:], k[self.keys][None], v[self.keys][None], self.single)[0])
        return torch.cat(parts) if parts else torch.zeros_like(q)


def _candidate_keys(layout: Layout) -> tuple[Tensor, Tensor]:
    """``(keys [M], count [N])``: for each row the events that it sees, then its own token."""
    events, rows = layout.num_events, layout.num_tokens - layout.num_events
    count = layout.visible[events:] + 1
    row = torch.repeat_interleave(torch.arange(rows, device=count.device), count)
    place = torch.arange(len(row), device=count.device) - (count.cumsum(0) - count)[row]
    begin = layout.offsets[layout.history[events:]]
    return torch.where(place < count[row] - 1, begin[row] + place, events + row), count
