"""Stochastic length (HSTU, arXiv 2402.17152, section 3.3): in training, long histories are thinned at random."""

from __future__ import annotations

from dataclasses import replace

import torch

from recdistill_core.batch import History


def stochastic_length(history: History, limit: int, alpha: float) -> History:
    """``history`` with some of the long ones thinned; draws from torch's generator of its device.

    A history of ``n > limit ** (alpha / 2)`` events is left whole with probability ``limit ** alpha / n ** 2``; else
    ``limit ** (alpha / 2)`` of its events are kept, drawn uniformly, in their order. So attention costs of the order of
    ``limit ** alpha`` in expectation. What is kept depends on lengths alone, and a row sees those of the events before
    it that are kept.

    Args:
        history: of a batch. limit: ``N``, the longest history there can be. alpha: in (1, 2]; at 2 nothing is thinned.
    """
    lengths, device = history.lengths, history.offsets.device
    most = int(limit ** (alpha / 2))
    whole = torch.rand(len(lengths), device=device) < limit**alpha / lengths.clamp(min=1).double().square()
    thinned = (lengths > most) & ~whole
    if not bool(thinned.any()):
        return history
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    order = (2.0 * owner + torch.rand(len(owner), dtype=torch.float64, device=device)).argsort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=device) - history.offsets[owner[order]]
    keep = ~thinned[owner] | (rank < most)
    before = torch.nn.functional.pad(keep.cumsum(0), (1, 0))  # kept events before each place
    start = history.offsets[history.row_to_history]
    return replace(
        history,
        events={name: column[keep] for name, column in history.events.items()},
        offsets=before[history.offsets],
        row_end=before[start + history.row_end] - before[start],
    )
