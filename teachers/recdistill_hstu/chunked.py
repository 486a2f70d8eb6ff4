"""Attention in tiles and strips, scores recomputed in the backward pass: memory linear in length, on any device."""

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
from recdistill_hstu.own import wide, with_own_silu, with_own_softmax
from recdistill_hstu.strip_bias import StripBias
from recdistill_hstu.strip_loop import StripLoop
from recdistill_hstu.strips import longest_tiled, plan_strips
from recdistill_hstu.tiles import TileGroup, most_attended, plan_tiles, seeing_tokens

#: Bias codes are kept for all layers while a batch has at most this many per unit of the score budget.
KEPT_CODES = 8


class ChunkedAttention:
    """See :mod:`recdistill_hstu.attention`.

    Histories are split into those whose tiles fit into a cache, which are batched, and long ones, which are cut into
    strips. Both hold the pairs of tokens and history events; a candidate's attention to itself is added afterwards.

    Args:
        layout: tokens asked for.
        softmax: softmax attention instead of SiLU attention.
        heads: attention heads.
        budget: most scores, heads included, that exist at a time.
    """

    def __init__(self, layout: Layout, *, softmax: bool, heads: int, budget: int) -> None:
        self.layout = layout
        self.softmax = softmax
        order = seeing_tokens(layout)
        long = (most_attended(layout) > longest_tiled(heads=heads, budget=budget))[layout.history[order]]
        self.groups = plan_tiles(layout, order[~long], heads=heads, budget=budget)
        self.strips = plan_strips(layout, order[long], heads=heads, budget=budget)
        pairs = sum(group.query.numel() * group.key.shape[1] for group in self.groups)
        self.keep = pairs <= KEPT_CODES * budget
        self.kept: dict[tuple[int, bool, bool], Tensor] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias, memo: Memo | None = None) -> Tensor:
        """``[S, H, d]`` queries, ``[T, H, d]`` keys and values -> ``[S, H, d]``."""
        bias.require(self.layout.longest)
        if self.softmax:
            q = q / math.sqrt(q.shape[-1])
        attend: Any = TiledAttention.apply  # torch ships it without types
        out, total = attend(q, k, v, *bias, self, memo or Memo())
        if self.softmax:
            return with_own_softmax(self.layout, out, total, q, k, v, bias)
        return with_own_silu(self.layout, out, q, k, v, bias)

    def codes(self, number: int, bias: Bias) -> Tensor:
        """``[B, Q, K]`` int32 rows of the bias table for group ``number``, computed once where they fit."""
        key = (number, bias.position is not None, bias.time is not None)
        if key in self.kept:
            return self.kept[key]
        codes = self.groups[number].codes(self.layout, bias)
        if self.keep:
            self.kept[key] = codes
        return codes


def hidden_score(dtype: torch.dtype) -> float:
    """A finite score so low that SiLU, its derivative and the exponential of it are exactly 0, as the mask demands."""
    return torch.finfo(dtype).min / 2


class TiledAttention(torch.autograd.Function):
    """History attention of the tokens asked for, group by group and strip by strip; saves no scores."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        position: Tensor | None,
        time: Tensor | None,
        plan: ChunkedAttention,
        memo: Memo,
    ) -> tuple[Tensor, Tensor]:
        """``([S, H, d], [S, H])``: sums over visible events; log of the sum of exponentials (softmax only).

        Args:
            ctx: autograd's context.
            q: ``[S, H, d]``. k, v: ``[T, H, d]``.
            position, time: weights of the bias, or None.
            plan: tiles and strips. memo: holds both results of an earlier pass.
        """
        out, total = memo.recall(lambda: _attend(q, k, v, Bias(position, time), plan))
        ctx.save_for_backward(q, k, v, position, time, *((out, total) if plan.softmax else ()))
        ctx.plan = plan
        return out.detach(), total.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``q``, ``k``, ``v`` and the bias; scores are computed again, group by group."""
        q, k, v, position, time, *saved = ctx.saved_tensors
        plan: ChunkedAttention = ctx.plan
        asked, heads, width = q.shape
        bias, kind = Bias(position, time), wide(q.dtype)
        table = _table(plan, bias, kind)
        total = saved[1] if plan.softmax else None
        # a softmax score's gradient is its weight times (the weight's gradient + this)
        shift = grad_total - (grad_out.to(kind) * saved[0]).sum(-1) if plan.softmax else None
        grad_q = q.new_zeros(asked + 1, heads * width)
        grad_k, grad_v = (q.new_zeros(len(k), heads * width, dtype=kind) for _ in range(2))
        grad_table = torch.zeros_like(table)
        for number, group in enumerate(plan.groups):
            codes = plan.codes(number, bias)
            query, key, value = _heads(q, group.query), _heads(k, group.key), _heads(v, group.key)
            upward = _heads(grad_out, group.query)
            score = _scores(query, key, table, codes)
            grad_weight = (upward @ value.transpose(1, 2)).view(score.shape).to(score.dtype)
            if total is not None and shift is not None:
                weight = _softmax_again(score, total, group)
                grad_score = grad_weight.add_(_per_query(shift, group)).mul_(weight)
            else:
                grad_score = torch.ops.aten.silu_backward(grad_weight, score)
                weight = functional.silu(score, inplace=True)
            weight, flat = (part.flatten(0, 1).to(q.dtype) for part in (weight, grad_score))
            _place(grad_q, group.slot, flat @ key, heads)
            _add(grad_k, group.key, flat.transpose(1, 2) @ query, heads)
            _add(grad_v, group.key, weight.transpose(1, 2) @ upward, heads)
            if any(ctx.needs_input_grad[3:5]):
                grad_table.index_add_(0, codes.flatten(), grad_score.sum(1).flatten())
        grads = [grad_q[:asked].view(q.shape), grad_k.view(k.shape), grad_v.view(v.shape)]
        rab = StripBias(plan.layout, bias, kind)
        sums = rab.zeros() if any(ctx.needs_input_grad[3:5]) else Bias()
        loop = StripLoop(q, k, v, rab, hidden_score(kind))
        for strip in plan.strips:
            if total is not None and shift is not None:
                loop.softmax_gradients(strip, grad_out, total, shift, grads, sums)
            else:
                loop.silu_gradients(strip, grad_out, grads, sums)
        grad_bias = _sum_bias(bias, bias.weight_gradients(grad_table[1:]), rab.in_order(sums))
        found = [grad.to(q.dtype) for grad in grads]
        return *found, *grad_bias, None, None


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Bias, plan: ChunkedAttention) -> tuple[Tensor, Tensor]:
    """The forward pass; see :meth:`TiledAttention.forward`."""
    asked, heads, width = q.shape
    kind = wide(q.dtype)
    hidden = hidden_score(kind)
    out = q.new_zeros(asked + 1, heads * width)  # the last row is where padding goes
    total = q.new_full((asked + 1, heads), hidden, dtype=kind)
    table = _table(plan, bias, kind)
    for number, group in enumerate(plan.groups):
        score = _scores(_heads(q, group.query), _heads(k, group.key), table, plan.codes(number, bias))
        if plan.softmax:
            log_sum = score.logsumexp(-1)
            total.index_copy_(0, group.slot, log_sum.transpose(1, 2).reshape(-1, heads))
            weight = score.sub_(log_sum[..., None]).exp_()
        else:
            weight = functional.silu(score, inplace=True)
        _place(out, group.slot, weight.flatten(0, 1).to(v.dtype) @ _heads(v, group.key), heads)
    out, total = out[:asked].view(q.shape), total[:asked]
    loop = StripLoop(q, k, v, StripBias(plan.layout, bias, kind), hidden)
    for strip in plan.strips:
        if plan.softmax:
            loop.softmax(strip, out, total)
        else:
            loop.silu(strip, out)
    return out, total


def _table(plan: ChunkedAttention, bias: Bias, dtype: torch.dtype) -> Tensor:
    """``[1 + R]`` bias by code, for groups; entry 0 hides an event."""
    hidden = torch.full((1,), hidden_score(dtype), dtype=dtype, device=plan.layout.history.device)
    if not plan.groups:
        return hidden
    return torch.cat([hidden, bias.table(plan.layout.longest, hidden.device).to(dtype)])


def _sum_bias(weights: Bias, *parts: Bias) -> list[Tensor | None]:
    """Gradients of ``weights``, in their dtype and size, from parts that may be absent or shorter."""
    found: list[Tensor | None] = []
    for weight, *grads in zip(weights, *parts, strict=True):
        total = None if weight is None else torch.zeros_like(weight)
        for grad in grads:
            if total is not None and grad is not None:
                total[: len(grad)] += grad
        found.append(total)
    return found


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
    target.index_add_(0, key.flatten(), _tokens(x, heads).to(target.dtype))


def _per_query(x: Tensor, group: TileGroup) -> Tensor:
    """``[S, H]`` -> ``[B, H, Q, 1]``."""
    return x[group.query].transpose(1, 2)[..., None]


def _softmax_again(score: Tensor, total: Tensor, group: TileGroup) -> Tensor:
    """Softmax weights from ``score``, which is overwritten; all zero for padded tokens."""
    blind = (group.visible == 0)[:, None, :, None]
    log_sum = _per_query(total, group).masked_fill(blind, -hidden_score(score.dtype))
    return score.sub_(log_sum).exp_()
