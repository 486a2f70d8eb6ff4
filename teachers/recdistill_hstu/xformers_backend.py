"""Softmax attention by xformers' ``memory_efficient_attention``; its mask classes describe the jagged batch.

Kernels run on CUDA only. Masks are plain Python and work, and are tested, anywhere.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recdistill_hstu.attention import Memo
from recdistill_hstu.bias import Bias
from recdistill_hstu.layout import Layout, Span
from recdistill_hstu.merged import MergedAttention, Part, PartialKernels

Kernel = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


def load(module: str) -> Any:
    """An xformers module. A build for another torch warns on import; that changes nothing here and is silenced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def memory_efficient(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """``[1, M, H, d]`` -> ``[1, M, H, d]`` by xformers' kernel, scaled by ``1 / sqrt(d)``."""
    out: Tensor = load("xformers.ops").memory_efficient_attention(q, k, v, attn_bias=mask)
    return out


class FlashKernels:
    """xformers' flash kernels, which hand out the log of the sums of exponentials for parts of the keys."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
        """See :class:`recdistill_hstu.merged.PartialKernels`."""
        flash = load("xformers.ops.fmha.flash")
        found: tuple[Tensor, Tensor] = load("xformers.ops.fmha").memory_efficient_attention_forward_requires_grad(
            q, k, v, attn_bias=mask, op=flash.FwOp
        )
        return found

    def backward(
        self, grad: Tensor, out: Tensor, log_sum: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`recdistill_hstu.merged.PartialKernels`."""
        flash = load("xformers.ops.fmha.flash")
        found: tuple[Tensor, Tensor, Tensor] = load("xformers.ops.fmha").memory_efficient_attention_backward(
            grad, out, log_sum, q, k, v, attn_bias=mask, op=flash.BwOp
        )
        return found


class XformersAttention:
    """See :mod:`recdistill_hstu.attention`. Softmax without additive bias.

    Where all events are asked for, histories attend among themselves: under a block-diagonal causal mask, or, with a
    span, in the parts of :func:`span_parts`. Every other token is a block of one query over a copy of the keys it sees,
    a candidate's own key last; so memory grows with the sum of what the rows see.

    Args:
        layout: tokens asked for.
        kernel: computes attention under a mask; tests pass one that runs on a CPU.
        partial: computes parts of it; likewise.

    Attributes:
        dense: number of leading tokens that are whole histories.
        causal: mask of those, or None where there are none, or a span.
        parts: of those under a span, else empty.
        single: mask of the others, or None where there are none.
        keys: ``[M]`` int64 tokens that are the others' keys, block after block.
    """

    def __init__(
        self, layout: Layout, kernel: Kernel = memory_efficient, partial: PartialKernels | None = None
    ) -> None:
        masks = load("xformers.ops.fmha.attn_bias")
        self.layout, self.kernel, self.partial = layout, kernel, partial or FlashKernels()
        device = layout.history.device
        self.dense = layout.num_events if layout.asked_events == layout.num_events else 0
        lengths = [length for length in (layout.offsets[1:] - layout.offsets[:-1]).tolist() if length and self.dense]
        self.causal, self.parts = None, []
        if lengths and layout.span.recent:
            self.parts = span_parts(lengths, layout.span, device)
        elif lengths:
            self.causal = masks.BlockDiagonalCausalMask.from_seqlens(lengths, device=device)
        self.keys, counts = _single_keys(layout, self.dense)
        ones = [1] * len(counts)
        self.single = masks.BlockDiagonalMask.from_seqlens(ones, counts.tolist(), device=device) if ones else None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias, memo: Memo | None = None) -> Tensor:
        """``[S, H, d]`` queries, ``[T, H, d]`` keys and values -> ``[S, H, d]``; ``bias`` must be empty."""
        if bias.position is not None or bias.time is not None:
            raise ValueError("xformers attention has no additive bias")
        dense, found = self.dense, []
        if self.causal is not None:
            found.append(self.kernel(q[None, :dense], k[None, :dense], v[None, :dense], self.causal)[0])
        if self.parts:
            merged: Any = MergedAttention.apply  # torch ships it without types
            found.append(merged(q[:dense], k[:dense], v[:dense], self.parts, self.partial))
        if self.single is not None:
            found.append(self.kernel(q[None, dense:], k[self.keys][None], v[self.keys][None], self.single)[0])
        return torch.cat(found) if found else q.clone()


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


def _single_keys(layout: Layout, dense: int) -> tuple[Tensor, Tensor]:
    """``(keys [M], count [S - dense])``: what each token from ``dense`` on attends to, a row's own key last."""
    visible, own = layout.visible[dense:], torch.ones_like(layout.visible[dense:])
    own[: layout.asked_events - dense] = 0
    first = layout.span.first(visible)
    oldest = first.clamp(max=layout.span.oldest)
    count = oldest + visible - first + own
    query = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    number = torch.arange(len(query), device=count.device) - (count.cumsum(0) - count)[query]
    skipped = torch.where(number < oldest[query], 0, (first - oldest)[query])
    begin = layout.offsets[layout.history[dense:]]
    event = begin[query] + number + skipped
    return torch.where(number < (count - own)[query], event, layout.token[dense:][query]), count
