"""SASRec (Kang and McAuley, arXiv 1808.09781): causal softmax attention and a pointwise feed-forward network.

The input (token times the root of the width, plus a learnt position) is :class:`recdistill_gpsd.model.InputPositions`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-8


class SASRecLayer(nn.Module):
    """``Q = LN(x); h = LN(Q + Attention(Q, x, x)); y = h + W2 Dropout(ReLU(W1 h))``, LayerNorms without affine.

    As the baseline of arXiv 2402.17152 computes it; the paper's own LayerNorms have an affine map.

    Args:
        width: ``D``, a multiple of ``heads``. heads: attention heads. hidden: width between W1 and W2.
        dropout: probability in [0, 1), on attention weights and in the network.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        for part in (self.query, self.key, self.value, self.output, self.widen, self.narrow):
            nn.init.xavier_normal_(part.weight)
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, D] -> [B, L, D]``; place ``i`` attends to places 0 to ``i``: what pads the end reaches nothing."""
        normal = functional.layer_norm(x, x.shape[-1:], eps=EPSILON)
        q, k, v = (self._split(part(given)) for part, given in ((self.query, normal), (self.key, x), (self.value, x)))
        rate = self.rate if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        attended: Tensor = self.output(mixed.transpose(1, 2).reshape(x.shape))
        h = functional.layer_norm(normal + attended, x.shape[-1:], eps=EPSILON)
        inner: Tensor = self.dropout(functional.relu(self.widen(h)))
        result: Tensor = self.dropout(self.narrow(inner))
        return h + result

    def _split(self, x: Tensor) -> Tensor:
        """``[B, L, D] -> [B, H, L, D / H]``."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def padded(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """``x [E, D]`` of sequences of ``lengths [B]`` end to end -> ``[B, L, D]`` filled up with zeros.

    Returns:
        the padded sequences, and ``[E]`` int64 the place of every event in them, flattened to ``[B * L]``.
    """
    count, longest = len(lengths), int(lengths.max())
    owner = torch.repeat_interleave(torch.arange(count, device=x.device), lengths)
    place = torch.arange(len(owner), device=x.device) - (lengths.cumsum(0) - lengths)[owner]
    flat = owner * longest + place
    wide = x.new_zeros(count * longest, x.shape[1]).index_copy(0, flat, x)
    return wide.view(count, longest, -1), flat
