"""Softmax attention of the same queries to several disjoint sets of keys, merged through the log of their sums.

Each part is computed by itself and gives the log of its sum of exponentials; the merged weights of a part are its own
times ``exp(its log - the merged log)``. A backward pass of flash kernels, or of CUTLASS's, rebuilds weights from scores
and that log, so that the same kernel gives each part's share of the gradient when it is told the merged log and output.
"""

from __future__ import annotations

import math
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
        mask: an xformers mask over these, in which every query sees a key.
    """

    query: Tensor
    key: Tensor
    mask: Any


@dataclass(frozen=True)
class Pairs:
    """Queries that see one key each, such as a candidate its own: a part that needs no kernel.

    Attributes:
        query: ``[N]`` int64 queries; each at most once.
        key: ``[N]`` int64 keys.
    """

    query: Tensor
    key: Tensor


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
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: list[Part], own: Pairs | None, kernels: PartialKernels
    ) -> Tensor:
        """``[M, H, d]`` of ``q [M, H, d]``, ``k`` and ``v [T, H, d]``."""
        out = q.new_zeros(q.shape, dtype=torch.promote_types(q.dtype, torch.float32))
        total = out.new_full(q.shape[:2], -torch.inf)
        if own is not None:
            total[own.query] = _score(q[own.query].to(out.dtype), k[own.key].to(out.dtype))
            out[own.query] = v[own.key].to(out.dtype)
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
        ctx.parts, ctx.own, ctx.kernels = parts, own, kernels
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``q``, ``k`` and ``v``, summed over the parts."""
        q, k, v, out, total = ctx.saved_tensors
        kind = torch.promote_types(q.dtype, torch.float32)
        grads = [torch.zeros_like(x, dtype=kind) for x in (q, k, v)]
        if ctx.own is not None:
            found = _own_gradients(ctx.own, total, *(x.to(kind) for x in _at(ctx.own, grad_out, out, q, k, v)))
            _add(grads, ctx.own, found)
        for part in ctx.parts:
            grad, merged, query, key, value = (x[None] for x in _at(part, grad_out, out, q, k, v))
            log_sum = total[part.query].T[None].contiguous()
            found = ctx.kernels.backward(grad, merged, log_sum, query, key, value, part.mask)
            _add(grads, part, tuple(share[0].to(kind) for share in found))
        return *(grad.to(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True)), None, None, None


def _at(part: Part | Pairs, grad: Tensor, out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Those of the part, in the order in which they are given."""
    return grad[part.query], out[part.query], q[part.query], k[part.key], v[part.key]


def _add(grads: list[Tensor], part: Part | Pairs, found: tuple[Tensor, ...]) -> None:
    """Add a part's gradients of ``q``, ``k`` and ``v`` to those of all tokens."""
    for grad, index, share in zip(grads, (part.query, part.key, part.key), found, strict=True):
        grad.index_add_(0, index, share)


def _score(query: Tensor, key: Tensor) -> Tensor:
    """``[N, H]`` of ``[N, H, d]`` pairs."""
    return (query * key).sum(-1) / math.sqrt(query.shape[-1])


def _own_gradients(
    own: Pairs, total: Tensor, grad: Tensor, out: Tensor, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients ``[N, H, d]`` of query, key and value of the pairs ``own``; ``total [M, H]``: of all queries."""
    weight = (_score(query, key) - total[own.query]).exp()[..., None]
    slope = weight * (grad * (value - out)).sum(-1, keepdim=True) / math.sqrt(query.shape[-1])
    return slope * key, slope * query, weight * grad
