"""A candidate's attention to itself, which the blocks and tiles of history events leave out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recdistill_hstu.bias import Bias
from recdistill_hstu.layout import Layout


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of scores and weights: at least float32, also where tokens are bfloat16."""
    return torch.promote_types(dtype, torch.float32)


def own_scores(layout: Layout, q: Tensor, k: Tensor, bias: Bias) -> Tensor:
    """``[N, H]`` score of each candidate towards itself, in the wide dtype of ``q [S, H, d]`` and ``k [T, H, d]``.

    ``q`` is already divided by what the attention divides scores by.
    """
    kind = wide(q.dtype)
    query, key = q[layout.asked_events :].to(kind), k[layout.token[layout.asked_events :]].to(kind)
    return (query * key).sum(-1) + bias.own(query)


def with_own_silu(layout: Layout, out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """``out [S, H, d]`` of SiLU attention to history events, with each candidate's attention to itself added."""
    seen, candidate = out[: layout.asked_events], out[layout.asked_events :]
    weight = functional.silu(own_scores(layout, q, k, bias))[..., None]
    value = v[layout.token[layout.asked_events :]].to(weight.dtype)
    return torch.cat([seen, (candidate + weight * value).to(out.dtype)])


def with_own_softmax(layout: Layout, out: Tensor, total: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """The same for softmax attention.

    Args:
        layout: tokens asked for.
        out: ``[S, H, d]`` attention to history events; 0 for a token that sees none.
        total: ``[S, H]`` log of the sum of the exponentials of its scores, wide; very low for such a token.
        q: ``[S, H, d]``, divided by ``sqrt(d)``. k, v: ``[T, H, d]``. bias: of the layer.
    """
    seen, candidate = out[: layout.asked_events], out[layout.asked_events :]
    share = torch.sigmoid(own_scores(layout, q, k, bias) - total[layout.asked_events :])[..., None]
    value = v[layout.token[layout.asked_events :]].to(share.dtype)
    return torch.cat([seen, (candidate + share * (value - candidate)).to(out.dtype)])
