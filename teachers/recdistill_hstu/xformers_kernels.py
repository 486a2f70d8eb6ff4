"""xformers' CUDA kernels: whole attention under a mask, and attention to some of the keys with the log of its sums."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor

#: Widest head of the flash kernels, and the oldest cards that run them.
WIDEST_FLASH_HEAD, FLASH_CAPABILITY = 256, (8, 0)


def load(module: str) -> Any:
    """An xformers module. A build for another torch warns on import; that changes nothing here and is silenced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def memory_efficient(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """``[1, M, H, d]`` -> ``[1, M, H, d]`` by xformers' choice of kernel, scaled by ``1 / sqrt(d)``."""
    out: Tensor = load("xformers.ops.fmha").memory_efficient_attention(q, k, v, attn_bias=mask)
    return out


class XformersKernels:
    """Attention to parts of the keys: by flash kernels, or by CUTLASS's where those do not compute it.

    Flash kernels give the log of the sums for all queries in a row, CUTLASS's for each block by itself, padded.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
        """See :class:`recdistill_hstu.merged.PartialKernels`."""
        ops, flash = _operators(q)
        fmha = load("xformers.ops.fmha")
        out, log_sum = fmha.memory_efficient_attention_forward_requires_grad(q, k, v, attn_bias=mask, op=ops.FwOp)
        return out, log_sum if flash else in_a_row(log_sum, mask)

    def backward(
        self, grad: Tensor, out: Tensor, log_sum: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`recdistill_hstu.merged.PartialKernels`."""
        ops, flash = _operators(q)
        log_sum = log_sum if flash else by_block(log_sum, mask)
        found: tuple[Tensor, Tensor, Tensor] = load("xformers.ops.fmha").memory_efficient_attention_backward(
            grad, out, log_sum, q, k, v, attn_bias=mask, op=ops.BwOp
        )
        return found


def in_a_row(log_sum: Tensor, mask: Any) -> Tensor:
    """``[B, H, *]`` of the blocks of ``mask``, each padded -> ``[1, H, M]`` of all queries."""
    block, place = _blocks(mask, log_sum.device)
    return log_sum[block, :, place].T[None]


def by_block(log_sum: Tensor, mask: Any) -> Tensor:
    """The other way round; padding is infinite, so that what it weighs is 0."""
    block, place = _blocks(mask, log_sum.device)
    starts = mask.q_seqinfo.seqstart_py
    padded = log_sum.new_full((len(starts) - 1, log_sum.shape[1], mask.q_seqinfo.max_seqlen), torch.inf)
    padded[block, :, place] = log_sum[0].T
    return padded


def _blocks(mask: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """``[M]`` block of each query, and ``[M]`` its place there."""
    starts = torch.tensor(mask.q_seqinfo.seqstart_py, device=device)
    lengths = starts.diff()
    block = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    return block, torch.arange(len(block), device=device) - starts[block]


def _operators(q: Tensor) -> tuple[Any, bool]:
    """xformers' operators for ``q [1, M, H, d]``, and whether they are flash kernels."""
    flash = q.dtype != torch.float32 and q.shape[-1] <= WIDEST_FLASH_HEAD
    if flash and q.is_cuda:
        flash = torch.cuda.get_device_capability(q.device) >= FLASH_CAPABILITY
    return load("xformers.ops.fmha." + ("flash" if flash else "cutlass")), flash
