"""Attention of strips of long histories, piece by piece, forward and backward.

Scores live in two buffers that all pieces of a call share: memory that is fresh for every piece would cost as much time
as the arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recdistill_hstu.bias import Bias
from recdistill_hstu.strip_bias import StripBias
from recdistill_hstu.strips import Piece, Strip


class StripLoop:
    """One pass over strips.

    Args:
        q: ``[S, H, d]``. k, v: ``[T, H, d]``.
        bias: of the strips' layer.
        hidden: score of an event that a token does not see.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, bias: StripBias, hidden: float) -> None:
        self.q, self.k, self.v = q, k, v
        self.bias, self.hidden = bias, hidden
        self.buffers = [q.new_empty(0, dtype=bias.dtype) for _ in range(2)]

    def silu(self, strip: Strip, out: Tensor) -> None:
        """Write SiLU attention of the strip's tokens to ``out [S, H, d]``."""
        query = self._gather(self.q, strip)
        total = torch.zeros_like(query)
        for piece in strip.pieces:
            weight = functional.silu(self._scores(query, strip, piece), inplace=True)
            total.baddbmm_(weight, self._events(self.v, piece))
        _scatter(out, strip, total)

    def softmax(self, strip: Strip, out: Tensor, log_sum: Tensor) -> None:
        """Write softmax attention to ``out [S, H, d]``, and to ``log_sum [S, H]`` the log of the sum of exponentials.

        Sums are kept relative to the greatest score so far (Milakov and Gimelshein, arXiv 1805.02867).
        """
        query = self._gather(self.q, strip)
        total = torch.zeros_like(query)
        norm = query.new_zeros(*query.shape[:2], 1)
        most = torch.full_like(norm, self.hidden)
        for piece in strip.pieces:
            score = self._scores(query, strip, piece)
            greater = torch.maximum(most, score.amax(-1, keepdim=True))
            weight, fade = score.sub_(greater).exp_(), (most - greater).exp_()
            norm.mul_(fade).add_(weight.sum(-1, keepdim=True))
            total.mul_(fade).baddbmm_(weight, self._events(self.v, piece))
            most = greater
        _scatter(out, strip, total.div_(norm))
        log_sum.index_copy_(0, strip.query, (most + norm.log()).squeeze(-1).T)

    def silu_gradients(self, strip: Strip, upward: Tensor, grads: list[Tensor], sums: Bias) -> None:
        """Add the gradients of the strip's attention, given ``upward [S, H, d]`` of its output.

        Args:
            strip: tokens.
            upward: gradient of the attention's output.
            grads: of ``q``, ``k`` and ``v``; those of ``k`` and ``v`` in the dtype of scores.
            sums: gradients of the bias, in the order that :class:`StripBias` keeps, or None.
        """
        query, above = self._gather(self.q, strip), self._gather(upward, strip)
        total = torch.zeros_like(query)
        for piece in strip.pieces:
            score = self._scores(query, strip, piece)
            grad = self._multiply(1, above, self._events(self.v, piece))
            torch.ops.aten.silu_backward.grad_input(grad, score, grad_input=grad)
            weight = functional.silu(score, inplace=True)
            self._add(strip, piece, weight, grad, query, above, total, grads, sums)
        _scatter(grads[0], strip, total)

    def softmax_gradients(
        self, strip: Strip, upward: Tensor, log_sum: Tensor, shift: Tensor, grads: list[Tensor], sums: Bias
    ) -> None:
        """The same for softmax attention.

        Args:
            strip, upward, grads, sums: as above.
            log_sum: ``[S, H]`` of the forward pass.
            shift: ``[S, H]``; a score's gradient is its weight times (the weight's gradient + this).
        """
        query, above = self._gather(self.q, strip), self._gather(upward, strip)
        total = torch.zeros_like(query)
        norm, offset = (x.index_select(0, strip.query).T[..., None].to(query.dtype) for x in (log_sum, shift))
        for piece in strip.pieces:
            weight = self._scores(query, strip, piece).sub_(norm).exp_()
            grad = self._multiply(1, above, self._events(self.v, piece)).add_(offset).mul_(weight)
            self._add(strip, piece, weight, grad, query, above, total, grads, sums)
        _scatter(grads[0], strip, total)

    def _add(
        self,
        strip: Strip,
        piece: Piece,
        weight: Tensor,
        grad: Tensor,
        query: Tensor,
        above: Tensor,
        total: Tensor,
        grads: list[Tensor],
        sums: Bias,
    ) -> None:
        """What a piece's weights and the gradient of its scores, both ``[H, Q, K]``, add to the gradients."""
        total.baddbmm_(grad, self._events(self.k, piece))
        _, grad_k, grad_v = (x.transpose(0, 1)[:, piece.first : piece.stop] for x in grads)
        grad_k.baddbmm_(grad.transpose(1, 2), query)
        grad_v.baddbmm_(weight.transpose(1, 2), above)
        if sums.position is not None or sums.time is not None:
            self.bias.gradient(grad.sum(0), strip, piece, sums)

    def _scores(self, query: Tensor, strip: Strip, piece: Piece) -> Tensor:
        """``[H, Q, K]`` scores with bias, in the first buffer."""
        score = self._multiply(0, query, self._events(self.k, piece))
        self.bias.add(score, strip, piece, self.hidden)
        return score

    def _multiply(self, number: int, x: Tensor, events: Tensor) -> Tensor:
        """``x [H, Q, d]`` times ``events [H, K, d]`` transposed, ``[H, Q, K]``, in buffer ``number``."""
        shape = *x.shape[:2], events.shape[1]
        size = shape[0] * shape[1] * shape[2]
        if len(self.buffers[number]) < size:
            self.buffers[number] = self.buffers[number].new_empty(size)
        return torch.bmm(x, events.transpose(1, 2), out=self.buffers[number][:size].view(shape))

    def _events(self, x: Tensor, piece: Piece) -> Tensor:
        """``[H, K, d]`` of ``x [T, H, d]``, in the dtype of scores."""
        return x.transpose(0, 1)[:, piece.first : piece.stop].to(self.bias.dtype)

    def _gather(self, x: Tensor, strip: Strip) -> Tensor:
        """``[H, Q, d]`` of ``x [S, H, d]``, in the dtype of scores."""
        return x.index_select(0, strip.query).transpose(0, 1).to(self.bias.dtype).contiguous()


def _scatter(target: Tensor, strip: Strip, x: Tensor) -> None:
    """Write ``x [H, Q, d]`` to the strip's rows of ``target [S, H, d]``; every token is in one strip only."""
    target.index_copy_(0, strip.query, x.transpose(0, 1).to(target.dtype))
