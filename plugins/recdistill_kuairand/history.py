"""The histories of the slice: events without timestamps, and what may be derived from them without a leak.

``user_sequences.parquet`` holds per user the last 50 watched videos in order (``watch_seq``), the long-viewed ones
(``long_watch_seq``), the liked ones (``like_seq``) and the time of the last event. Three things would leak:

* A video that a user watched twice has one derived label for both events, so the earlier event would tell the later
  row's label. Such rows have no label (null), and only the last of them carries the action bits.
* A few histories end with an impression that the stream holds too (same user, video and millisecond): the stream's
  row stays, the history's event is dropped, or the row would find its own outcome in its past.
* The synthetic times must lie before the user's first row of the stream.

Noise that stays: ``long_watch_seq`` reaches further back than ``watch_seq`` where a user has more than 50 events, so a
derived 1 may stem from an older event of the same video.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdistill_kuairand.layout import read_parquet
from recdistill_kuairand.stream import event_keys

SEQUENCE_COLUMNS = ("user_id", "last_time_ms", "watch_seq", "like_seq", "long_watch_seq")
#: Distance of the synthetic times of neighbouring events.
STEP_MS = 60_000
_USERS_AT_ONCE = 1024


@dataclass
class Boundary:
    """Where histories end and the stream begins.

    Attributes:
        first: user -> time (ms UTC) of the first row of the stream.
        shared: users whose last history event is a row of the stream.
        last_keys: sorted keys of every history's last event.
    """

    first: dict[int, int] = field(default_factory=dict)
    shared: set[int] = field(default_factory=set)
    last_keys: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype=np.uint64))

    def add(self, user: NDArray[np.int64], item: NDArray[np.int64], time: NDArray[np.int64]) -> None:
        """Take note of rows of the stream, ``[N]`` each."""
        users, which = np.unique(user, return_inverse=True)
        earliest = np.full(len(users), np.iinfo(np.int64).max)
        np.minimum.at(earliest, which, time)
        for name, moment in zip(users.tolist(), earliest.tolist(), strict=True):
            self.first[name] = min(moment, self.first.get(name, moment))
        if len(self.last_keys):
            hit = np.isin(event_keys(user, item, time), self.last_keys)
            self.shared.update(user[hit].tolist())


@dataclass(frozen=True)
class HistoryRows:
    """Events of whole histories.

    Attributes:
        row: ``[N]`` row of the user in the file. user, item, time: ``[N]`` int64; ``time`` is synthetic, ms UTC.
        long_view, like: ``[N]`` bool, derived outcomes.
        unique: ``[N]`` bool, the video occurs once in the user's sequence, so the outcome is this event's.
        newest: ``[N]`` bool, the last occurrence of the video in the sequence.
    """

    row: NDArray[np.int64]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.int64]
    long_view: NDArray[np.bool_]
    like: NDArray[np.bool_]
    unique: NDArray[np.bool_]
    newest: NDArray[np.bool_]


def last_event_keys(path: Path) -> NDArray[np.uint64]:
    """Sorted keys (user, video, time) of each history's last event, one a user."""
    found = [np.empty(0, dtype=np.uint64)]
    for batch in read_parquet(path, SEQUENCE_COLUMNS, _USERS_AT_ONCE):
        lengths, items = _lists(batch, "watch_seq")
        some = lengths > 0
        item = items[np.cumsum(lengths)[some] - 1]
        user, time = (batch.column(name).to_numpy()[some] for name in ("user_id", "last_time_ms"))
        found.append(event_keys(user, item, time))
    return np.sort(np.concatenate(found))


def read_histories(path: Path, boundary: Boundary) -> Iterator[HistoryRows]:
    """All events, whole histories at a time, oldest first within a user.

    Times end at ``last_time_ms``, or 1 ms before the user's first row of the stream if that is earlier.
    """
    start = 0
    for batch in read_parquet(path, SEQUENCE_COLUMNS, _USERS_AT_ONCE):
        yield _derive(batch, start, boundary)
        start += batch.num_rows


def _derive(batch: Any, start: int, boundary: Boundary) -> HistoryRows:
    users = batch.column("user_id").to_numpy()
    lengths, item = _lists(batch, "watch_seq")
    owner = np.repeat(np.arange(len(users)), lengths)
    pair = _pairs(owner, item)
    distinct, which, counts = np.unique(pair, return_inverse=True, return_counts=True)
    newest = np.zeros(len(pair), dtype=bool)
    last = np.full(len(distinct), -1)
    np.maximum.at(last, which, np.arange(len(pair)))
    newest[last] = True

    shared = np.array([user in boundary.shared for user in users.tolist()], dtype=bool)
    back = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(pair))
    keep = ~(shared[owner] & (back == 0))
    time = _ends(batch, users, boundary)[owner] - back * STEP_MS
    long_view, like = (_member(batch, name, pair) for name in ("long_watch_seq", "like_seq"))
    parts = (start + owner, users[owner], item, time, long_view, like, counts[which] == 1, newest)
    return HistoryRows(*(part[keep] for part in parts))


def _ends(batch: Any, users: NDArray[np.int64], boundary: Boundary) -> NDArray[np.int64]:
    last = batch.column("last_time_ms").to_numpy()
    before = [boundary.first.get(user, time + 1) - 1 for user, time in zip(users.tolist(), last.tolist(), strict=True)]
    return np.asarray(np.minimum(last, before), dtype=np.int64)


def _member(batch: Any, name: str, pair: NDArray[np.int64]) -> NDArray[np.bool_]:
    lengths, items = _lists(batch, name)
    return np.isin(pair, _pairs(np.repeat(np.arange(len(lengths)), lengths), items))


def _pairs(owner: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray(owner << 40 | item, dtype=np.int64)


def _lists(batch: Any, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    column = batch.column(name)
    lengths = np.asarray(column.value_lengths().fill_null(0), dtype=np.int64)
    return lengths, np.asarray(column.flatten(), dtype=np.int64)
