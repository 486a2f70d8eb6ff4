"""The order in which rows are read: windows of time in order; within one by time, user, request, or shuffled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import DataError
from recdistill_core.interfaces import SampleSource

WITHIN = ("time", "user", "request", "shuffle")
#: Orders in which a later row of a user may be read before an earlier one.
SHUFFLED = ("request", "shuffle")


@dataclass(frozen=True)
class ReadOrder:
    """How a pass over the rows is cut into batches.

    Attributes:
        batch_size: rows per batch, >= 1.
        window_hours: rows are read in windows of this many hours of event time, windows in time order; a window is
            the precision of "in time order". 0: strict time order.
        within: order inside a window. ``user`` keeps the rows of one user together, users in seeded random order, so
            that a long history is encoded once per window; ``request`` reads whole requests in seeded random order and
            cuts none (unless it alone is larger than a batch), for losses over the rows of a request; ``shuffle`` is a
            seeded random order; ``time`` is strict.
    """

    batch_size: int = 2048
    window_hours: float = 24.0
    within: str = "user"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")
        if not 0 <= self.window_hours < math.inf:
            raise ValueError(f"window_hours must be >= 0 and finite, got {self.window_hours}")
        if self.within not in WITHIN:
            raise ValueError(f"within must be one of {', '.join(WITHIN)}, got {self.within!r}")


def windows(event_time: NDArray[np.int64], start: int, stop: int, hours: float) -> Iterator[tuple[int, int]]:
    """``(first, last + 1)`` row ranges of the windows between ``start`` and ``stop``; times ascend."""
    if hours <= 0:
        yield start, stop
        return
    first = start
    while first < stop:
        span = max(1, int(hours * 3_600_000))
        bound = (int(event_time[first]) // span + 1) * span
        last = min(stop, first + int(np.searchsorted(event_time[first:stop], bound, side="left")))
        yield first, last
        first = last


def row_batches(
    source: SampleSource,
    start: int,
    stop: int,
    order: ReadOrder,
    seed: int,
    keep: NDArray[np.bool_] | None = None,
) -> Iterator[NDArray[np.int64]]:
    """Row positions of each batch, ``[<= batch_size]`` int64. Batches never cross a window.

    Args:
        source: the dataset. start, stop: row positions ``[start, stop)``. order: batch size and order.
        seed: of the order inside windows.
        keep: ``[rows of the dataset]``: which rows are read; None: all of the range.

    Raises:
        DataError: if there is no row to read.
    """
    if stop <= start or (keep is not None and not keep[start:stop].any()):
        raise DataError(
            f"no rows to read between positions {start} and {stop}",
            where="read order",
            fix="widen the split's time range",
        )
    within = "time" if order.window_hours <= 0 else order.within
    owners = source.column("request_id" if within == "request" else "user_id")
    for number, (first, last) in enumerate(windows(source.column("event_time"), start, stop, order.window_hours)):
        rows = np.arange(first, last, dtype=np.int64)
        if keep is not None:
            rows = rows[keep[first:last]]
        generator = np.random.default_rng([seed, number])
        if within == "shuffle":
            rows = generator.permutation(rows)
        elif within in ("user", "request"):
            present, place = np.unique(owners[rows], return_inverse=True)
            turn = generator.permutation(len(present))[place]
            rows = rows[np.argsort(turn, kind="stable")]
            if within == "request":
                yield from _whole(rows, np.bincount(turn), order.batch_size)
                continue
        for begin in range(0, len(rows), order.batch_size):
            yield rows[begin : begin + order.batch_size]


def _whole(rows: NDArray[np.int64], sizes: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Batches of whole groups, whose ``sizes`` add up to the rows; only a group larger than a batch is cut."""
    ends = np.cumsum(sizes)
    begin = 0
    while begin < len(rows):
        last = int(np.searchsorted(ends, begin + batch_size, side="right")) - 1
        stop = int(ends[last]) if last >= 0 else 0
        stop = stop if stop > begin else begin + batch_size
        yield rows[begin:stop]
        begin = stop
