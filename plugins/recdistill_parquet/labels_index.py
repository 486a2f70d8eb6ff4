"""Random access to labels by example id.

A row holds id and values side by side. Where the ids lie close together a row's place is its id, and a look-up costs
one cache miss. Elsewhere rows are sorted by a hash and found by the start of their bucket, which costs two. A binary
search over as many ids costs one for each of its last steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
#: Keys that are looked up at once; what a look-up needs of them stays in the cache.
CHUNK = 1 << 14


def mix(ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """``[N]`` a hash of each id; different ids have different hashes."""
    mixed = ids.view(np.uint64) * _FIRST
    mixed ^= mixed >> _HALF
    mixed *= _SECOND
    return mixed


class _Span:
    """Rows by their id, from the smallest one on; a place that has no row holds an id that is not its own."""

    def __init__(self, rows: Rows, first: int, last: int) -> None:
        self._first, self.count = np.int64(first), rows.shape[0]
        self._rows: Rows = np.zeros((last - first + 1, rows.shape[1]), np.int64)
        self._rows[:, 0] = ~self._own_ids()
        self._rows[rows[:, 0] - self._first] = rows
        there = int((self._rows[:, 0] == self._own_ids()).sum())
        self.twice = _repeated(rows[:, 0]) if there < self.count else rows[:0, 0]

    def rows(self) -> Rows:
        """All rows, in no order that matters."""
        there: Rows = self._rows[self._rows[:, 0] == self._own_ids()]
        return there

    def find(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], Rows]:
        found = self._rows.take(ids - self._first, axis=0, mode="clip")
        return found[:, 0] == ids, found

    def _own_ids(self) -> NDArray[np.int64]:
        return np.arange(self._rows.shape[0]) + self._first


class _Buckets:
    """Rows that are sorted by a hash of their id, and the first row of each bucket of hashes."""

    def __init__(self, rows: Rows) -> None:
        hashes = mix(np.ascontiguousarray(rows[:, 0]))
        order = np.argsort(hashes)
        hashes = hashes[order]
        self._rows, self.count = rows[order], rows.shape[0]
        bits = int(self.count).bit_length() + 1
        self._shift = np.uint64(64 - bits)
        counts = np.bincount((hashes >> self._shift).view(np.int64), minlength=1 << bits)
        kind: type[np.signedinteger[Any]] = np.int32 if self.count < 2**31 else np.int64
        self._starts: NDArray[np.signedinteger[Any]] = np.zeros((1 << bits) + 1, kind)
        np.cumsum(counts, out=self._starts[1:])
        same = hashes[1:] == hashes[:-1]  # equal hashes, equal ids
        self.twice = np.unique(self._rows[1:, 0][same])

    def rows(self) -> Rows:
        """All rows, in no order that matters."""
        return self._rows

    def find(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], Rows]:
        bucket = (mix(ids) >> self._shift).view(np.int64)
        place = self._starts[bucket]
        found = self._rows.take(place, axis=0, mode="clip")
        left = np.flatnonzero(found[:, 0] != ids)
        place, end = place[left] + 1, self._starts[bucket[left] + 1]
        while True:
            more = place < end
            left, place, end = left[more], place[more], end[more]
            if not left.size:
                return found[:, 0] == ids, found
            candidates = self._rows.take(place, axis=0)
            found[left] = candidates
            other = candidates[:, 0] != ids[left]
            left, place, end = left[other], place[other] + 1, end[other]


class KeyIndex:
    """A growing table of rows ``[width]`` int64 by their first column, whose values are distinct.

    Rows lie in levels of falling size, so that adding a few to many is cheap. It takes 8 bytes per row and column, and
    up to a quarter more where ids lie close together, or 8 to 16 for a row's bucket.

    Args:
        width: columns of a row, at least 1.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._levels: list[_Span | _Buckets] = []

    def __len__(self) -> int:
        return sum(level.count for level in self._levels)

    def add(self, rows: Rows) -> NDArray[np.int64]:
        """Add ``rows [N, width]``.

        Returns:
            ids that are there twice now, ``[K]``; empty, or the index is of no use any more.
        """
        if not rows.shape[0]:
            return np.empty(0, np.int64)
        ids = np.ascontiguousarray(rows[:, 0])
        twice = ids[self.find(ids)[0]]
        while self._levels and self._levels[-1].count <= 2 * rows.shape[0]:
            rows = np.concatenate((self._levels.pop().rows(), rows))
        first, last = int(rows[:, 0].min()), int(rows[:, 0].max())
        close = last - first < 1.25 * rows.shape[0]
        level = _Span(rows, first, last) if close else _Buckets(rows)
        self._levels.append(level)
        return np.unique(np.concatenate((twice, level.twice)))

    def find(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], Rows]:
        """``(known [M], rows [M, width])`` of ``ids [M]``; rows of unknown ids are arbitrary."""
        if len(self._levels) == 1 and ids.size <= CHUNK:
            return self._levels[0].find(np.ascontiguousarray(ids))
        known = np.zeros(ids.shape, np.bool_)
        rows = np.empty((ids.size, self.width), np.int64)
        for start in range(0, ids.size if self._levels else 0, CHUNK):
            part = slice(start, start + CHUNK)
            asked = np.ascontiguousarray(ids[part])
            for level in self._levels:
                hit, found = level.find(asked)
                known[part] |= hit
                if hit.all():
                    rows[part] = found
                else:
                    rows[part][hit] = found[hit]
        return known, rows


def _repeated(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of ``ids [N]`` that are there more than once."""
    found, count = np.unique(ids, return_counts=True)
    return found[count > 1]
