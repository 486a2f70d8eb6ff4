"""Relative bias of a strip and a piece of events, and the gradient of its weights, without a table of pairs' codes.

Tokens and events are neighbours: the position weights of a token are a run of the reversed table; far from the diagonal
the time buckets of a piece are few, so that comparisons with their edges replace logarithms.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recdistill_hstu.bias import Bias, bucket_edges, time_bucket
from recdistill_hstu.layout import Layout
from recdistill_hstu.strips import PIECE_EVENTS, Piece, Strip

#: Up to so many edges between time buckets, comparing with each is cheaper than a logarithm.
FEW_EDGES = 4


class StripBias:
    """Bias of one layer, for strips.

    Args:
        layout: tokens asked for.
        bias: weights, without gradient.
        dtype: of scores.
    """

    def __init__(self, layout: Layout, bias: Bias, dtype: torch.dtype) -> None:
        self.layout = layout
        self.time = None if bias.time is None else bias.time.to(dtype)
        self.reversed: Tensor | None = None
        if bias.position is not None:
            table = bias.position[: layout.longest + 1].to(dtype)
            self.reversed = functional.pad(table.flip(0), (0, PIECE_EVENTS))  # an unseen event may lie ahead
        self.dtype = dtype

    def add(self, score: Tensor, strip: Strip, piece: Piece, hidden: float) -> None:
        """Add the bias to ``score [H, Q, K]``; an event that a token does not see gets the score ``hidden``."""
        rab = None
        if self.reversed is not None:
            rows = self.reversed.unfold(0, piece.stop - piece.first, 1)
            rab = rows.index_select(0, self._start(strip, piece))
        if self.time is not None:
            weight = self._time(strip, piece)
            rab = weight if rab is None else rab.add_(weight)
        if not piece.whole:
            unseen = self._unseen(strip, piece)
            rab = score.new_zeros(unseen.shape) if rab is None else rab.expand(unseen.shape).contiguous()
            rab.masked_fill_(unseen, hidden)
        if rab is not None:
            score.add_(rab)

    def gradient(self, grad: Tensor, strip: Strip, piece: Piece, sums: Bias) -> None:
        """Add what ``grad [Q, K]``, summed over heads, means for the weights.

        Args:
            grad: gradient of the scores; 0 where a token does not see an event.
            strip: tokens. piece: events.
            sums: gradients so far; that of the position weights in the order of ``reversed``.
        """
        position, time = sums
        if position is not None:
            start, width = self._start(strip, piece), grad.shape[1]
            if strip.steady:  # each row starts one place before the one above: a padded matrix, read askew
                rows = len(start)
                skewed = functional.pad(grad.flip(0), (0, rows)).flatten()[: rows * (width + rows - 1)]
                first = int(start[-1])
                position[first : first + width + rows - 1] += skewed.view(rows, -1).sum(0)
            else:
                places = start[:, None] + torch.arange(width, device=grad.device)
                position.index_add_(0, places.flatten(), grad.flatten())
        if time is not None:
            self._time_gradient(grad, strip, piece, time)

    def zeros(self) -> Bias:
        """Gradients to add to, that of the position weights in the order of ``reversed``."""
        return Bias(*(None if part is None else torch.zeros_like(part) for part in (self.reversed, self.time)))

    def in_order(self, sums: Bias) -> Bias:
        """The same by distance, for distances up to the longest history."""
        if sums.position is None:
            return sums
        return sums._replace(position=sums.position[: self.layout.longest + 1].flip(0))

    def _start(self, strip: Strip, piece: Piece) -> Tensor:
        """``[Q]`` places in ``reversed`` of the weights of the piece's first event; past them all if it lies ahead."""
        return (self.layout.longest - strip.position + piece.place).clamp(max=self.layout.longest + 1)

    def _unseen(self, strip: Strip, piece: Piece) -> Tensor:
        place = torch.arange(piece.place, piece.place + piece.stop - piece.first, device=strip.visible.device)
        return self.layout.span.has(place, strip.visible[:, None]).logical_not_()

    def _elapsed(self, strip: Strip, piece: Piece) -> Tensor:
        return strip.time[:, None] - self.layout.event_time[piece.first : piece.stop]

    def _time(self, strip: Strip, piece: Piece) -> Tensor:
        """``[Q, K]``, or ``[1, 1]`` where all are equal."""
        assert self.time is not None
        if piece.buckets is None or piece.buckets[1] - piece.buckets[0] > FEW_EDGES:
            code = time_bucket(self._elapsed(strip, piece))
            return self.time.index_select(0, code.flatten()).view(code.shape)
        low, high = piece.buckets
        weight = self.time[low].view(1, 1)
        if low == high:
            return weight
        elapsed, edges = self._elapsed(strip, piece), bucket_edges()
        weight = weight.expand(elapsed.shape).contiguous()
        for bucket in range(low + 1, high + 1):
            torch.where(elapsed >= edges[bucket], self.time[bucket], weight, out=weight)
        return weight

    def _time_gradient(self, grad: Tensor, strip: Strip, piece: Piece, time: Tensor) -> None:
        if piece.buckets is None or piece.buckets[1] - piece.buckets[0] > FEW_EDGES:
            code = time_bucket(self._elapsed(strip, piece))
            time.index_add_(0, code.flatten(), grad.flatten())
            return
        low, high = piece.buckets
        time[low] += grad.sum()
        if low == high:
            return
        elapsed, edges = self._elapsed(strip, piece), bucket_edges()
        for bucket in range(low + 1, high + 1):
            beyond = (grad * (elapsed >= edges[bucket])).sum()
            time[bucket] += beyond
            time[bucket - 1] -= beyond
