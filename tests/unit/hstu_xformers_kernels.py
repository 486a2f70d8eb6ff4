"""What xformers' CUDA kernels compute, with the mask written out, for any device."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def scores(q: Tensor, k: Tensor, mask: Any) -> Tensor:
    """``[B, H, M, K]``."""
    hidden = mask.materialize((q.shape[1], k.shape[1]), dtype=q.dtype)
    return torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1]) + hidden


def dense_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """``memory_efficient_attention``."""
    return torch.einsum("bhij,bjhd->bihd", scores(q, k, mask).softmax(-1), v)


class DensePartial:
    """Forward with the log of the sums, and backward from that log and the output, as flash kernels do it."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
        return dense_kernel(q, k, v, mask), scores(q, k, mask).logsumexp(-1)

    def backward(
        self, grad: Tensor, out: Tensor, log_sum: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        weight = (scores(q, k, mask) - log_sum[..., None]).exp().to(q.dtype)
        shift = (grad * out).sum(-1).transpose(1, 2)[..., None]
        above = torch.einsum("bihd,bjhd->bhij", grad, v)
        score = weight * (above - shift) / math.sqrt(q.shape[-1])
        return (
            torch.einsum("bhij,bjhd->bihd", score, k),
            torch.einsum("bhij,bihd->bjhd", score, q),
            torch.einsum("bhij,bihd->bjhd", weight, grad),
        )
