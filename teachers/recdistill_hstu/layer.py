"""One HSTU layer (arXiv 2402.17152, section 3; equations as in the official code)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from recdistill_hstu.attention import Attend, Memo
from recdistill_hstu.bias import RelativeBias
from recdistill_hstu.config import HSTUConfig

EPSILON = 1e-6


def normalise(x: Tensor, divisor: float = 1.0) -> Tensor:
    """LayerNorm of ``x / divisor`` over the last axis, without affine, eps 1e-6."""
    return functional.layer_norm(x, x.shape[-1:], eps=EPSILON * divisor**2)


class Projection(nn.Module):
    """``U, V, Q, K = SiLU(X W)``: one matrix without bias; ``U`` and ``Q`` only for tokens that are asked for.

    The four products are taken apart, so that each result is contiguous and none is four times as large as the input.
    ``W`` starts Xavier-uniform, with the part of ``K`` equal to that of ``Q``: tokens that are alike attend to each
    other from the first step, so that a candidate learns sooner to find its kin in the history.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4 * width, width))
        nn.init.xavier_uniform_(self.weight)
        with torch.no_grad():
            self.weight[3 * width :] = self.weight[2 * width : 3 * width]

    def forward(self, x: Tensor, asked: Tensor) -> tuple[Tensor, ...]:
        """``x [T, D]``, ``asked [S, D]`` -> ``U [S, D], V [T, D], Q [S, D], K [T, D]``."""
        inputs = (asked, x, asked, x)
        parts = self.weight.chunk(4)
        return tuple(functional.silu(functional.linear(*pair)) for pair in zip(inputs, parts, strict=True))


class HSTULayer(nn.Module):
    """``[T, D]`` all tokens -> ``[S, D]`` those asked for.

    ``U, V, Q, K = SiLU(LayerNorm(X) W)``, ``A = SiLU(Q K^T + rab) / n`` on the visible pairs,
    ``Y = W_o Dropout(U * LayerNorm(A V)) + X``. ``n`` is the constant ``max_length``, not a length found in the batch,
    so that a row's result does not depend on its neighbours. With softmax attention ``A`` is a softmax instead.

    Args:
        config: sizes and kinds.
    """

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.checkpointing = config.checkpointing
        self.divisor = float(config.max_length) if config.attention == "silu" else 1.0
        self.project = Projection(config.width)
        self.output = nn.Linear(config.width, config.width, bias=False)
        self.bias = RelativeBias(config.max_length, position=config.position_bias, time=config.time_bias)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, x: Tensor, attend: Attend, asked: Tensor | None = None) -> Tensor:
        """``x [T, D]`` -> ``[S, D]``.

        Args:
            x: all tokens.
            attend: attention that knows who sees whom.
            asked: ``[S]`` int64 tokens that ``attend`` computes; None means all.
        """
        if self.checkpointing == "none" or not torch.is_grad_enabled():
            return self._compute(x, attend, asked, None)
        memo = Memo() if self.checkpointing == "selective" else None
        result: Tensor = checkpoint(self._compute, x, attend, asked, memo, use_reentrant=False)
        return result

    def _compute(self, x: Tensor, attend: Attend, asked: Tensor | None, memo: Memo | None) -> Tensor:
        residual = x if asked is None else x.index_select(0, asked)
        normal = normalise(x)
        u, v, q, k = self.project(normal, normal if asked is None else normalise(residual))
        return self.mix(residual, u, attend(self.split(q), self.split(k), self.split(v), self.bias(), memo))

    def split(self, x: Tensor) -> Tensor:
        """``[*, D]`` -> ``[*, H, d]``."""
        return x.view(-1, self.heads, x.shape[1] // self.heads)

    def mix(self, residual: Tensor, u: Tensor, mixed: Tensor) -> Tensor:
        """``[S, D]`` from the residual and ``U`` ``[S, D]`` and what attention gave, ``[S, H, d]``."""
        gated = self.dropout(u * normalise(mixed.view(u.shape), self.divisor))
        result: Tensor = self.output(gated) + residual
        return result
