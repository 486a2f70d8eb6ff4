"""Attention in tiles, with scores recomputed in the backward pass: memory grows linearly with length, on any device."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from recdistill_hstu.attention import Memo
from recdistill_hstu.bias import Bias
from recdistill_hstu.layout import Layout
from recdistill_hstu.tiles import TileGroup, plan_tiles

#: Bias codes are kept for all layers while a batch has at most this many per unit of the score budget.
KEPT_CODES = 8


class ChunkedAttention:
    """See :mod:`recdistill_hstu.attention`.

    The tiles hold the pairs of tokens and history events. A candidate's attention to itself is added afterwards: to the
    sum of SiLU attention directly, to softmax attention through the log of the sum of exponentials.

    Args:
        layout: tokens asked for.
        softmax: softmax attention instead of SiLU attention.
        heads: attention heads.
        budget: most scores, heads included, that exist at a time.
    """

    def __init__(self, layout: Layout, *, softmax: bool, heads: int, budget: int) -> None:
        self.layout = layout
        self.softmax = softmax
        self.groups = plan_tiles(layout, heads=heads, budget=budget)
        pairs = sum(group.query.numel() * group.key.shape[1] for group in self.groups)
        self.keep = pairs <= KEPT_CODES * budget
        self.kept: dict[tuple[int, bool, bool], Tensor] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias, memo: Memo | None = None) -> Tensor:
        """``[S, H, d]`` queries, ``[T, H, d]`` keys and values -> ``[S, H, d]``."""
        if self.softmax:
            q = q / math.sqrt(q.shape[-1])
        table = bias.table(self.layout.longest, q.device).to(wide(q.dtype))
        table = torch.cat([table.new_full((1,), hidden_score(table.dtype)), table])
        attend: Any = TiledAttention.apply  # torch ships it without types
        out, total = attend(q, k, v, table, self, bias, memo or Memo())
        events, value = self.layout.asked_events, v[self.layout.num_events :]
        own = (q[events:] * k[self.layout.num_events :]).sum(-1) + bias.own(q)
        seen, candidate = out.split([events, self.layout.num_rows])
        if self.softmax:
            share = torch.sigmoid(own - total[events:])[..., None].to(value.dtype)
            return torch.cat([seen, candidate + share * (value - candidate)])
        return torch.cat([seen, candidate + functional.silu(own)[..., None] * value])

    def codes(self, number: int, bias: Bias) -> Tensor:
        """``[B, Q, K]`` int32 rows of the bias table for group ``number``, computed once where they fit."""
        key = (number, bias.position is not None, bias.time is not None)
        if key in self.kept:
            return self.kept[key]
        codes = self.groups[number].codes(self.layout, bias)
        if self.keep:
            self.kept[key] = codes
        return codes


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of scores and weights: at least float32, also where tokens are bfloat16."""
    return torch.promote_types(dtype, torch.float32)


def hidden_score(dtype: torch.dtype) -> float:
    """A finite score so low that SiLU, its derivative and the exponential of it are exactly 0, as the mask demands."""
    return torch.finfo(dtype).min / 2


class TiledAttention(torch.autograd.Function):
    """History attention of the tokens asked for, group by group; saves no scores."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, table: Tensor, plan: ChunkedAttention, bias: Bias, memo: Memo
    ) -> tuple[Tensor, Tensor]:
        """``([S, H, d], [S, H])``: sums over visible events; log of the sum of exponentials (softmax only).

        Args:
            ctx: autograd's context.
            q: ``[S, H, d]``. k, v: ``[T, H, d]``.
            table: ``[1 + R]`` bias by code, in the dtype of scores; entry 0 hides a key.
            plan: tiles. bias: names the biases that codes are made of. memo: holds both results of an earlier pass.
        """
        out, total = memo.recall(lambda: _attend(q, k, v, table, plan, bias))
        ctx.save_for_backward(q, k, v, table, *((out, total) if plan.softmax else ()))
        ctx.plan, ctx.bias = plan, bias
        return out.detach(), total.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``q``, ``k``, ``v`` and ``table``; scores are computed again, group by group."""
        q, k, v, table, *saved = ctx.saved_tensors
        plan: ChunkedAttention = ctx.plan
        asked, heads, width = q.shape
        if plan.softmax:
            shift = grad_total - (grad_out * saved[0]).sum(-1)
        grad_q = q.new_zeros(asked + 1, heads * width)
        grad_k, grad_v = (q.new_zeros(len(k), heads * width) for _ in range(2))
        grad_table = torch.zeros_like(table)
        for number, group in enumerate(plan.groups):
            codes = plan.codes(number, ctx.bias)
            query, key, value = _heads(q, group.query), _heads(k, group.key), _heads(v, group.key)
            upward = _heads(grad_out, group.query)
            score = _scores(query, key, table, codes)
            grad_weight = (upward @ value.transpose(1, 2)).view(score.shape).to(score.dtype)
            if plan.softmax:
                weight = _softmax_again(score, saved[1], group)
                grad_score = grad_weight.add_(_per_query(shift, group)).mul_(weight)
            else:
                grad_score = torch.ops.aten.silu_backward(grad_weight, score)
                weight = functional.silu(score, inplace=True)
            weight, flat = (part.flatten(0, 1).to(q.dtype) for part in (weight, grad_score))
            _place(grad_q, group.slot, flat @ key, heads)
            _add(grad_k, group.key, flat.transpose(1, 2) @ query, heads)
            _add(grad_v, group.key, weight.transpose(1, 2) @ upward, heads)
            if ctx.needs_input_grad[3]:
                grad_table.index_add_(0, codes.flatten(), grad_score.sum(1).flatten())
        grads = grad_q[:asked].view(q.shape), grad_k.view(k.shape), grad_v.view(v.shape)
        return *grads, grad_table, None, None, None


def _attend(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, plan: ChunkedAttention, bias: Bias
) -> tuple[Tensor, Tensor]:
    """The forward pass; see :meth:`TiledAttention.forward`."""
    asked, heads, width = q.shape
    out = q.new_zeros(asked + 1, heads * width)
    total = table.new_full((asked + 1, heads), hidden_score(table.dtype))
    for number, group in enumerate(plan.groups):
        score = _scores(_heads(q, group.query), _heads(k, group.key), table, plan.codes(number, bias))
        if plan.softmax:
            log_sum = score.logsumexp(-1)
            total.index_copy_(0, group.slot, log_sum.transpose(1, 2).reshape(-1, heads))
            weight = score.sub_(log_sum[..., None]).exp_()
        else:
            weight = functional.silu(score, inplace=True)
        _place(out, group.slot, weight.flatten(0, 1).to(v.dtype) @ _heads(v, group.key), heads)
    return out[:asked].view(q.shape), total[:asked]


def _scores(query: Tensor, key: Tensor, table: Tensor, codes: Tensor) -> Tensor:
    """``[B * H, Q, d]``, ``[B * H, K, d]`` -> ``[B, H, Q, K]`` scores with bias; an unseen key has the hidden score."""
    score = (query @ key.transpose(1, 2)).view(len(codes), -1, *codes.shape[1:]).to(table.dtype)
    return score.add_(table.index_select(0, codes.flatten()).view(codes.shape)[:, None])


def _heads(x: Tensor, index: Tensor) -> Tensor:
    """``[*, H, d]`` at ``index [B, I]`` -> ``[B * H, I, d]``."""
    found = x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:])
    return found.transpose(1, 2).flatten(0, 1)


def _tokens(x: Tensor, heads: int) -> Tensor:
    """``[B * H, I, d]`` -> ``[B * I, H * d]``."""
    split = x.view(-1, heads, *x.shape[1:]).transpose(1, 2)
    return split.reshape(-1, heads * x.shape[2])


def _place(target: Tensor, slot: Tensor, x: Tensor, heads: int) -> None:
    """Write ``[B * H, Q, d]`` to the rows ``slot`` of ``target``; every token is in one tile only."""
    target.index_copy_(0, slot, _tokens(x, heads))


def _add(target: Tensor, key: Tensor, x: Tensor, heads: int) -> None:
    """Add ``[B * H, K, d]`` to the rows ``key`` of ``target``; padded places add zeros."""
    target.index_add_(0, key.flatten(), _tokens(x, heads))


def _per_query(x: Tensor, group: TileGroup) -> Tensor:
    """``[S, H]`` -> ``[B, H, Q, 1]``."""
    return x[group.query].transpose(1, 2)[..., None]


def _softmax_again(score: Tensor, total: Tensor, group: TileGroup) -> Tensor:
    """Softmax weights from ``score``, which is overwritten; all zero for padded tokens."""
    blind = (group.visible == 0)[:, None, :, None]
    log_sum = _per_query(total, group).masked_fill(blind, -hidden_score(score.dtype))
    return score.sub_(log_sum).exp_()
