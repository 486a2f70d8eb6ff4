"""What xformers' CUDA kernels compute, with the mask written out, for any device."""

from __future__ import annotations

import math
from itertools import pairwise
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


class HollowPartial:
    """Zeros, and how many pairs of a query and a key it was asked for: shows what memory everything else takes."""

    def __init__(self) -> None:
        self.pairs = 0

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
        queries, keys = (torch.tensor(info.seqstart_py).diff() for info in (mask.q_seqinfo, mask.k_seqinfo))
        self.pairs += int((queries * keys).sum())
        return torch.zeros_like(q), q.new_zeros(1, q.shape[2], q.shape[1])

    def backward(
        self, grad: Tensor, out: Tensor, log_sum: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)


class BlockedFmha:
    """``xformers.ops.fmha``, on any device, with the sums of blocks in the format of the operator that is named."""

    def __init__(self) -> None:
        self.used: list[str] = []

    memory_efficient_attention = staticmethod(lambda q, k, v, attn_bias: dense_kernel(q, k, v, attn_bias))

    def memory_efficient_attention_forward_requires_grad(
        self, q: Tensor, k: Tensor, v: Tensor, attn_bias: Any, op: str
    ) -> tuple[Tensor, Tensor]:
        self.used.append(op)
        out, log_sum = DensePartial().forward(q, k, v, attn_bias)
        return out, log_sum if op.startswith("flash") else _padded(log_sum, attn_bias, to=32, value=0.0)

    def memory_efficient_attention_backward(
        self,
        grad: Tensor,
        out: Tensor,
        log_sum: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_bias: Any,
        op: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.used.append(op)
        starts = attn_bias.q_seqinfo.seqstart_py
        if not op.startswith("flash"):
            assert log_sum.shape == (len(starts) - 1, q.shape[2], attn_bias.q_seqinfo.max_seqlen)
            blocks = [(*each, stop - start) for *each, (start, stop) in zip(log_sum, pairwise(starts), strict=True)]
            assert all(bool(block[:, size:].isinf().all()) for block, size in blocks)
            log_sum = torch.cat([block[:, :size] for block, size in blocks], 1)[None]
        return DensePartial().backward(grad, out, log_sum, q, k, v, attn_bias)


def _padded(log_sum: Tensor, mask: Any, to: int, value: float) -> Tensor:
    """``[1, H, M]`` of all queries -> ``[B, H, P]`` of each block, ``P`` a multiple of ``to``."""
    starts = mask.q_seqinfo.seqstart_py
    wide = -(-mask.q_seqinfo.max_seqlen // to) * to
    parts = [log_sum[0, :, start:stop] for start, stop in pairwise(starts)]
    return torch.stack([torch.nn.functional.pad(part, (0, wide - part.shape[1]), value=value) for part in parts])
