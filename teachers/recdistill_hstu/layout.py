"""Where each token of a batch stands and what it may see.

Axes: ``E`` events, ``N`` rows, ``T = E + N`` tokens (all events, then one candidate per row), ``U`` histories, ``S``
tokens that are asked for, in that order too: some or all events, then all candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError
from recdistill_core.interfaces import HistoryWindow


@dataclass(frozen=True)
class Span:
    """Which of the events before it a token attends to (ULTRA-HSTU, arXiv 2602.16986, semi-local attention).

    Attributes:
        recent: most of the newest ones, >= 0; 0: all. oldest: how many of the oldest ones besides.
    """

    recent: int = 0
    oldest: int = 0

    def has(self, place: Tensor, visible: Tensor) -> Tensor:
        """Whether a token with ``visible`` events attends to the one at ``place``; both broadcast."""
        seen = place < visible
        if self.recent:
            seen &= (place >= visible - self.recent) | (place < self.oldest)
        return seen

    def first(self, visible: Tensor) -> Tensor:
        """``[*]`` place of the oldest of the recent events for ``visible [*]``."""
        return (visible - self.recent).clamp(min=0) if self.recent else torch.zeros_like(visible)


def ranges(begin: Tensor, lengths: Tensor) -> Tensor:
    """``[sum(lengths)]`` int64: the numbers ``begin[i]`` to ``begin[i] + lengths[i] - 1`` of every ``i [U]``."""
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=begin.device), lengths)
    first = lengths.cumsum(0) - lengths
    return begin[owner] + torch.arange(len(owner), device=begin.device) - first[owner]


@dataclass(frozen=True)
class Layout:
    """Token positions of one batch; every attention backend reads the same one.

    A token sees the first ``visible`` events of its history, or those of them that the span leaves, and itself,
    nothing else: no candidate is ever a key for another token. For an event, "itself" is the last of the visible ones.

    Attributes:
        offsets: ``[U + 1]`` int64; history ``u`` is events ``offsets[u]:offsets[u + 1]``.
        event_time: ``[E]`` int64 ms UTC.
        token: ``[S]`` int64 in ``[0, T)``, the tokens asked for.
        history: ``[S]`` int64 in ``[0, U)``.
        visible: ``[S]`` int64; ``i + 1`` for the ``i``-th event of a history, ``row_end`` for a row.
        position: ``[S]`` int64; ``i`` for the ``i``-th event, ``row_end`` for a row: the distance of key 0.
        time: ``[S]`` int64 ms UTC; an event's own time, a row's ``event_time``.
        num_rows: ``N``.
        longest: events of the longest history.
        span: which of the visible events a token attends to.
    """

    offsets: Tensor
    event_time: Tensor
    token: Tensor
    history: Tensor
    visible: Tensor
    position: Tensor
    time: Tensor
    num_rows: int
    longest: int
    span: Span = Span()

    @classmethod
    def of(cls, batch: Batch, span: Span | None = None) -> Layout:
        """The layout of all tokens of ``batch``; without histories every row sees nothing but itself."""
        rows = torch.zeros(len(batch), dtype=torch.long, device=batch.event_time.device)
        offsets, ends, owners, event_time = rows.new_zeros(2), rows, rows, rows[:0]
        if batch.history is not None:
            offsets, ends = batch.history.offsets, batch.history.row_end
            owners, event_time = batch.history.row_to_history, batch.history.events["time"]
        return cls.build(offsets, event_time, owners, ends, batch.event_time, span or Span())

    @classmethod
    def build(cls, offsets: Tensor, event_time: Tensor, owner: Tensor, end: Tensor, time: Tensor, span: Span) -> Layout:
        """The layout of all events of ``offsets [U + 1]``, ``event_time [E]``, and of rows of ``owner``, ``end`` and
        ``time``, each ``[N]``, which say whose history a row sees, how many of its events, and when."""
        lengths = offsets[1:] - offsets[:-1]
        of_event = torch.repeat_interleave(torch.arange(len(lengths), device=offsets.device), lengths)
        place = torch.arange(len(of_event), device=offsets.device) - offsets[of_event]
        return cls(
            offsets=offsets,
            event_time=event_time,
            token=torch.arange(len(of_event) + len(owner), device=offsets.device),
            history=torch.cat([of_event, owner]),
            visible=torch.cat([place + 1, end]),
            position=torch.cat([place, end]),
            time=torch.cat([event_time, time]),
            num_rows=len(owner),
            longest=int(lengths.max()) if len(lengths) else 0,
            span=span,
        )

    def require(self, max_length: int) -> None:
        """Raise DataError where a history is longer than ``max_length``."""
        if self.longest > max_length:
            raise DataError(
                f"a history of {self.longest} events reached a teacher of max_length {max_length}",
                where="Batch.history.offsets",
                fix="ask the source for batches with teacher.history, or raise max_length",
            )

    @property
    def num_events(self) -> int:
        """``E``."""
        return int(self.event_time.shape[0])

    @property
    def num_asked(self) -> int:
        """``S``."""
        return int(self.token.shape[0])

    @property
    def asked_events(self) -> int:
        """``S - N``: how many of the tokens asked for are events."""
        return self.num_asked - self.num_rows

    def truncated(self, window: HistoryWindow) -> tuple[Layout, Tensor]:
        """The layout in which each row sees the events of ``window`` alone, as if its history had begun there.

        Rows of a history whose windows begin at one place share an encoding of it. Call it on a layout of all tokens.

        Returns:
            a layout of all tokens, and ``[T']`` int64, which of the tokens of this one they are.
        """
        owner, end = self.history[self.num_events :], self.visible[self.num_events :]
        start = window.start(end)
        unique: Any = torch.unique  # torch ships it without types
        pairs, history = unique(torch.stack([owner, start], dim=1), dim=0, return_inverse=True)
        begin = self.offsets[pairs[:, 0]] + pairs[:, 1]
        lengths = torch.zeros_like(begin).scatter_reduce_(0, history, end - start, "amax")
        offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        kept = ranges(begin, lengths)
        layout = Layout.build(
            offsets if len(lengths) else offsets.new_zeros(2),
            self.event_time[kept],
            history,
            end - start,
            self.time[self.num_events :],
            self.span,
        )
        rows = torch.arange(self.num_events, self.num_events + self.num_rows, device=begin.device)
        return layout, torch.cat([kept, rows])

    def asking(self, chosen: Tensor) -> Layout:
        """The layout that asks for the tokens at ``chosen`` ``[S']`` of those asked for, in order, and for all rows."""
        kept = {name: getattr(self, name)[chosen] for name in ("token", "history", "visible", "position", "time")}
        return replace(self, **kept)

    def final(self) -> tuple[Layout, Tensor]:
        """What the last layer must compute: all rows, and each event that is the newest one that some row sees.

        Returns:
            the layout of those tokens, and ``[N]`` int64 place in it of each row's newest event; one past the last
            event where a row sees none. Call it on a layout of all tokens.
        """
        ends = self.visible[self.asked_events :]
        newest = self.offsets[self.history[self.asked_events :]] + ends - 1
        unique: Any = torch.unique  # torch ships it without types
        events, place = unique(torch.where(ends > 0, newest, self.num_events), return_inverse=True)
        events = events[events < self.num_events]
        chosen = torch.cat([events, torch.arange(self.num_events, self.num_asked, device=events.device)])
        return self.asking(chosen), place
