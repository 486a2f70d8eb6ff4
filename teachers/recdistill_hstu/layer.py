"""One HSTU layer (arXiv 2402.17152, section 3; equations as in the official code)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from recdistill_hstu.attention import Attend
from recdistill_hstu.bias import RelativeBias
from recdistill_hstu.config import HSTUConfig

EPSILON = 1e-6


def normalise(x: Tensor) -> Tensor:
    """LayerNorm over the last axis, without affine, eps 1e-6."""
    return functional.layer_norm(x, x.shape[-1:], eps=EPSILON)


class HSTULayer(nn.Module):
    """``[T, D] -> [T, D]``.

    ``U, V, Q, K = SiLU(LayerNorm(X) W)``, ``A = SiLU(Q K^T + rab) / n`` on the visible pairs,
    ``Y = W_o Dropout(U * LayerNorm(A V)) + X``. ``n`` is the constant ``max_length``, not a length found in the batch,
    so that a row's result does not depend on its neighbours. With softmax attention ``A`` is a softmax instead.

    Args:
        config: sizes and kinds.
    """

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.divisor = float(config.max_length) if config.attention == "silu" else 1.0
        self.project = nn.Linear(config.width, 4 * config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)
        self.bias = RelativeBias(config.max_length, position=config.position_bias, time=config.time_bias)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """``[T, D]`` tokens -> ``[T, D]``; ``attend`` knows who sees whom."""
        width = x.shape[1]
        u, v, q, k = functional.silu(self.project(normalise(x))).chunk(4, dim=1)
        shape = (-1, self.heads, width // self.heads)
        mixed = attend(q.view(shape), k.view(shape), v.view(shape), self.bias()).reshape(x.shape)
        gated = u * normalise(mixed / self.divisor)
        result: Tensor = self.output(self.dropout(gated)) + x
        return result
