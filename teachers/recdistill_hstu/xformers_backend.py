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

from recdistill_hstu.attention import Memo
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

    Where all events are asked for, histories attend among themselves under a block-diagonal causal mask. Every other
    token is a block of one query over a copy of the keys it sees, a candidate's own key last; so memory grows with the
    sum of ``row_end`` over the rows.

    Args:
        layout: tokens asked for.
        kernel: computes attention under a mask; tests pass one that runs on a CPU.

    Attributes:
        dense: number of leading tokens that are whole histories.
        causal: mask of those, or None where there are none.
        single: mask of the others, or None where there are none.
        keys: ``[M]`` int64 tokens that are the others' keys, block after block.
    """

    def __init__(self, layout: Layout, kernel: Kernel = memory_efficient) -> None:
        masks = load("xformers.ops.fmha.attn_bias")
        self.layout, self.kernel = layout, kernel
        device = layout.history.device
        self.dense = layout.num_events if layout.asked_events == layout.num_events else 0
        lengths = [length for length in (layout.offsets[1:] - layout.offsets[:-1]).tolist() if length and self.dense]
        self.causal = masks.BlockDiagonalCausalMask.from_seqlens(lengths, device=device) if lengths else None
        self.keys, counts = _single_keys(layout, self.dense)
        ones = [1] * len(counts)
        self.single = masks.BlockDiagonalMask.from_seqlens(ones, counts.tolist(), device=device) if ones else None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias, memo: Memo | None = None) -> Tensor:
        """``[S, H, d]`` queries, ``[T, H, d]`` keys and values -> ``[S, H, d]``; ``bias`` must be empty."""
        if bias.position is not None or bias.time is not None:
            raise ValueError("xformers attention has no additive bias")
        dense, parts = self.dense, []
        if self.causal is not None:
            parts.append(self.kernel(q[None, :dense], k[None, :dense], v[None, :dense], self.causal)[0])
        if self.single is not None:
            parts.append(self.kernel(q[None, dense:], k[self.keys][None], v[self.keys][None], self.single)[0])
        return torch.cat(parts) if parts else q.clone()


def _single_keys(layout: Layout, dense: int) -> tuple[Tensor, Tensor]:
    """``(keys [M], count [S - dense])``: the events that each token from ``dense`` on sees, then the candidate."""
    seen = layout.visible[dense:]
    count = seen.clone()
    count[layout.asked_events - dense :] += 1
    query = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    place = torch.arange(len(query), device=count.device) - (count.cumsum(0) - count)[query]
    begin = layout.offsets[layout.history[dense:]]
    return torch.where(place < seen[query], begin[query] + place, layout.token[dense:][query]), count
