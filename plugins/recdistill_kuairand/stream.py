"""Reads the impression logs in blocks and drops repeated rows with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import DataError
from recdistill_kuairand.layout import LOG_COLUMNS, Layout, read_blocks

_KEYS = ("user_id", "video_id", "time_ms")


@dataclass(frozen=True)
class Rows:
    """Impressions of one file.

    Attributes:
        file: where they come from.
        row: ``[N]`` int64, 0-based data rows of that file.
        user, item, time: ``[N]`` int64; ``time`` in ms UTC.
        columns: the other log columns ``[N]``, Arrow int64.
        repeated, random: how many rows of the block were dropped, and why.
    """

    file: Path
    row: NDArray[np.int64]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.int64]
    columns: dict[str, Any]
    repeated: int = 0
    random: int = 0


def event_keys(user: NDArray[np.int64], item: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.uint64]:
    """``[N]`` 64-bit hashes of (user, item, time). Two million different keys collide with probability 1e-7."""
    key = np.zeros(len(user), dtype=np.uint64)
    for part in (user, item, time):
        key = _mix(key ^ part.astype(np.uint64))
    return key


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), a bijection on 64 bits."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


class RecentKeys:
    """The keys of about the last ``window`` rows, 8 bytes each."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._blocks: deque[NDArray[np.uint64]] = deque()
        self._held = 0

    def first_seen(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """``[N]`` bool: True for the first row of each key within the window; remembers the keys."""
        unique, first = np.unique(keys, return_index=True)
        fresh = np.zeros(len(keys), dtype=bool)
        fresh[first] = True
        for block in self._blocks:
            place = np.minimum(np.searchsorted(block, unique), len(block) - 1)
            fresh[first[block[place] == unique]] = False
        if len(unique):
            self._blocks.append(unique)
            self._held += len(unique)
        while self._held - len(self._blocks[0] if self._blocks else ()) >= self._window:
            self._held -= len(self._blocks.popleft())
        return fresh


def read_log(layout: Layout, rows: int, window: int, include_random: bool) -> Iterator[Rows]:
    """Impressions in file order without repeats, and without randomly exposed ones unless asked for.

    Raises:
        DataError: for an unreadable file, or an empty user, video or time, with file and row.
    """
    recent = RecentKeys(window)
    for path in layout.logs:
        start = 0
        for batch in read_blocks(path, LOG_COLUMNS, rows):
            yield _clean(path, start, batch, recent, include_random)
            start += batch.num_rows


def _clean(path: Path, start: int, batch: Any, recent: RecentKeys, include_random: bool) -> Rows:
    keys = [_required(path, start, batch, name) for name in _KEYS]
    fresh = recent.first_seen(event_keys(keys[0], keys[1], keys[2]))
    wanted = fresh.copy()
    if not include_random:
        wanted &= np.asarray(batch.column("is_rand").fill_null(0)) == 0
    keep = np.flatnonzero(wanted)
    others = {name: batch.column(name).take(keep) for name in LOG_COLUMNS if name not in (*_KEYS, "is_rand")}
    user, item, time = (key[keep] for key in keys)
    repeated = int((~fresh).sum())
    return Rows(path, start + keep, user, item, time, others, repeated, len(fresh) - repeated - len(keep))


def _required(path: Path, start: int, batch: Any, name: str) -> NDArray[np.int64]:
    column = batch.column(name)
    if column.null_count:
        row = start + int(np.flatnonzero(np.asarray(column.is_null()))[0])
        raise DataError(f"{name} is empty", where=place(path, row), fix="fetch the file again, or remove the row")
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.int64)


def place(path: Path, row: int) -> str:
    """``FILE, row R``, counting data rows from 0."""
    return f"{path}, row {row}"
