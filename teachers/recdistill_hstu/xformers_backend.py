"""Softmax attention by xformers' ``memory_efficient_attention``; its mask classes describe the jagged batch.

Kernels run on CUDA only. Masks are plain Python and work, and are tested, anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recdistill_hstu.attention import Memo
from recdistill_hstu.bias import Bias
from recdistill_hstu.layout import Layout, Span
from recdistill_hstu.merged import MergedAttention, Pairs, PartialKernels
from recdistill_hstu.xformers_kernels import XformersKernels, load, memory_efficient
from recdistill_hstu.xformers_parts import RUN, span_parts, token_parts

Kernel = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


class XformersAttention:
    """See :mod:`recdistill_hstu.attention`. Softmax attention without additive bias.

    Where all events are asked for, histories attend among themselves under a block-diagonal causal mask, or, with a
    span, in the parts of :func:`~recdistill_hstu.xformers_parts.span_parts`. Every other token attends in those of
    :func:`~recdistill_hstu.xformers_parts.token_parts`; a candidate's own key is merged with what these give.

    Args:
        layout: tokens asked for.
        kernel: computes attention under a mask; tests pass one that runs on a CPU.
        partial: computes parts of it; likewise.

    Attributes:
        dense: how many of the tokens, from the first on, attend under ``causal``.
        causal: mask of whole histories, or None.
        parts: of the other tokens, whose queries are counted from ``dense``.
        own: those of them that are rows, and their keys, or None.
    """

    def __init__(
        self, layout: Layout, kernel: Kernel = memory_efficient, partial: PartialKernels | None = None
    ) -> None:
        self.layout, self.kernel, self.partial = layout, kernel, partial or XformersKernels()
        device = layout.history.device
        whole = layout.num_events if layout.asked_events == layout.num_events else 0
        lengths = [length for length in layout.offsets.diff().tolist() if length and whole]
        self.dense, self.causal, self.parts = 0, None, []
        if lengths and layout.span.recent:
            self.parts = span_parts(lengths, layout.span, device)
        elif lengths:
            masks = load("xformers.ops.fmha.attn_bias")
            self.dense, self.causal = whole, masks.BlockDiagonalCausalMask.from_seqlens(lengths, device=device)
        self.parts += token_parts(layout, whole, self.dense)
        rows = torch.arange(layout.asked_events, layout.num_asked, device=device)
        self.own = Pairs(rows - self.dense, layout.token[rows]) if len(rows) else None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias, memo: Memo | None = None) -> Tensor:
        """``[S, H, d]`` queries, ``[T, H, d]`` keys and values -> ``[S, H, d]``; ``bias`` must be empty."""
        if bias.position is not None or bias.time is not None:
            raise ValueError("xformers attention has no additive bias")
        dense, found = self.dense, []
        if self.causal is not None:
            found.append(self.kernel(q[None, :dense], k[None, :dense], v[None, :dense], self.causal)[0])
        if len(q) > dense:
            merged: Any = MergedAttention.apply  # torch ships it without types
            found.append(merged(q[dense:], k, v, self.parts, self.own, self.partial))
        return torch.cat(found) if found else q.clone()


def failure(dtype: torch.dtype, width: int, span: bool, device: torch.device) -> str | None:
    """What the kernels say against heads of ``width`` in ``dtype`` on ``device``, with or without a span; else None.

    A wheel of xformers holds kernels for one version of torch and for some GPUs, and imports without them, too: so a
    small batch is computed, forward and backward, once in a process.
    """
    return _failure(dtype, width, span, device, torch.are_deterministic_algorithms_enabled())


@functools.cache
def _failure(dtype: torch.dtype, width: int, span: bool, device: torch.device, deterministic: bool) -> str | None:
    """``deterministic``: part of the key, as some kernels refuse to be run so."""
    try:
        # the first call may come from a loop that scores, or in the middle of a step
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            _try(dtype, width, span, device)
    except Exception as error:  # whatever a package that does not fit this machine may raise
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return None


def _try(dtype: torch.dtype, width: int, span: bool, device: torch.device) -> None:
    """Attend in every kind of part that there is; raises what the kernels raise."""
    offsets = torch.tensor([0, 4, 4 + 2 * RUN], device=device)
    owner, end = torch.tensor([0, 1, 1], device=device), torch.tensor([0, RUN, 2 * RUN], device=device)
    times = torch.zeros(int(offsets[-1]) + 3, dtype=torch.long, device=device)
    layout = Layout.build(offsets, times[3:], owner, end, times[:3], Span(4, 2) if span else Span())
    some = torch.arange(RUN, layout.num_asked, device=device)
    for asked in (layout, layout.asking(some)):
        q, k, v = (
            torch.full((tokens, 2, width), 0.1, dtype=dtype, device=device, requires_grad=True)
            for tokens in (asked.num_asked, layout.num_asked, layout.num_asked)
        )
        out = XformersAttention(asked)(q, k, v, Bias())
        grads = torch.autograd.grad(out.float().sum(), (q, k, v))
        if not all(bool(x.isfinite().all()) for x in (out, *grads)):
            raise RuntimeError("attention to finite tokens is not finite")
