"""Where each token of a batch stands and what it may see.

Axes: ``E`` events, ``N`` rows, ``T = E + N`` tokens (all events, then one candidate per row), ``U`` histories.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recdistill_core.batch import Batch


@dataclass(frozen=True)
class Layout:
    """Token positions of one batch; every attention backend reads the same one.

    Token ``t`` sees the first ``visible[t]`` events of its history and itself, nothing else: no candidate is ever a key
    for another token. For an event, "itself" is the last of the visible ones.

    Attributes:
        offsets: ``[U + 1]`` int64; history ``u`` is events ``offsets[u]:offsets[u + 1]``.
        history: ``[T]`` int64 in ``[0, U)``.
        visible: ``[T]`` int64; ``i + 1`` for the ``i``-th event of a history, ``row_end`` for a row.
        position: ``[T]`` int64; ``i`` for the ``i``-th event, ``row_end`` for a row: the distance of key 0.
        time: ``[T]`` int64 ms UTC; an event's own time, a row's ``event_time``.
        num_events: ``E``.
        longest: events of the longest history.
    """

    offsets: Tensor
    history: Tensor
    visible: Tensor
    position: Tensor
    time: Tensor
    num_events: int
    longest: int

    @classmethod
    def of(cls, batch: Batch) -> Layout:
        """The layout of ``batch``; without histories every row sees nothing but itself."""
        rows, device = len(batch), batch.event_time.device
        if batch.history is None:
            none = torch.zeros(rows, dtype=torch.long, device=device)
            offsets = torch.zeros(2, dtype=torch.long, device=device)
            return cls(offsets, none, none, none, batch.event_time, num_events=0, longest=0)
        given = batch.history
        lengths = given.lengths
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
        place = torch.arange(len(owner), device=device) - given.offsets[owner]
        return cls(
            offsets=given.offsets,
            history=torch.cat([owner, given.row_to_history]),
            visible=torch.cat([place + 1, given.row_end]),
            position=torch.cat([place, given.row_end]),
            time=torch.cat([given.events["time"], batch.event_time]),
            num_events=len(owner),
            longest=int(lengths.max()) if len(lengths) else 0,
        )

    @property
    def num_tokens(self) -> int:
        """``T``."""
        return int(self.history.shape[0])

    def last_visible(self) -> tuple[Tensor, Tensor]:
        """``(event [N], any [N] bool)``: the newest event that each row sees; 0 where it sees none."""
        end = self.visible[self.num_events :]
        newest = self.offsets[self.history[self.num_events :]] + end - 1
        return torch.where(end > 0, newest, torch.zeros_like(newest)), end > 0
