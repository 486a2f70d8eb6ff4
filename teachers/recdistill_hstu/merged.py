"""Softmax attention of the same queries to several disjoint sets of keys, merged through the log of their sums.

Each part is computed by itself and gives the log of its sum of exponentials; the merged weights of a part are its own
times ``exp(its log - the merged log)``. A flash backward pass rebuilds weights from scores and that log, so that the
same kernel gives each part's share of the gradient when it is told the merged log and output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Part:
    """Some queries, some keys and who sees whom.

    Attributes:
        query: ``[M]`` int64 queries; each at most once.
        key: ``[K]`` int64 keys.
        mask: an xformers mask over these.
    """

    query: Tensor
    key: Tensor
    mask: Any


class PartialKernels(Protocol):
    """Softmax attention under a mask, scaled by ``1 / sqrt(d)``, with the log of the sums of exponentials."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
        """``[1, M, H, d]`` -> ``([1, M, H, d], [1, H, M] float32)``."""
        ...

    def backward(
        self, grad: Tensor, out: Tensor, log_sum: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of ``q``, ``k`` and ``v``, with weights ``exp(score - log_sum)``."""
        ...


class MergedAttention(torch.autograd.Function):
    """Attention of queries to all of the parts that they are in; a query that is in none gets 0."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: list[Part], kernels: PartialKernels) -> Tensor:
        """``[M, H, d]`` of ``q [M, H, d]``, ``k`` and ``v [T, H, d]``."""
        out = q.new_zeros(q.shape, dtype=torch.promote_types(q.dtype, torch.float32))
        total = out.new_full(q.shape[:2], -torch.inf)
        for part in parts:
            found, log_sum = kernels.forward(q[part.query][None], k[part.key][None], v[part.key][None], part.mask)
            mine = log_sum[0].T.to(total.dtype)
            so_far = total[part.query]
            both = torch.logaddexp(so_far, mine)
            share, rest = (mine - both).exp()[..., None], (so_far - both).exp()[..., None]
            out[part.query] = out[part.query] * rest + found[0] * share
            total[part.query] = both
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, total)
        ctx.parts, ctx.kernels = parts, kernels
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``q``, ``k`` and ``v``, summed over the parts."""
        q, k, v, out, total = ctx.saved_tensors
        kind = torch.promote_types(q.dtype, torch.float32)
        grads = [torch.zeros_like(x, dtype=kind) for x in (q, k, v)]
        for part in ctx.parts:
            merged = (x[part.query][None].contiguous() for x in (grad_out, out))
            log_sum = total[part.query].T[None].contiguous()
            given = (q[part.query][None], k[part.key][None], v[part.key][None], part.mask)
            found = ctx.kernels.backward(*merged, log_sum, *given)
            for grad, index, share in zip(grads, (part.query, part.key, part.key), found, strict=True):
                grad.index_add_(0, index, share[0].to(kind))
        return *(grad.to(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True)), None, None
