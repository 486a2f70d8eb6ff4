"""Random access to labels by example id: rows sorted by a hash, found by the start of their bucket.

A look-up costs two cache misses, one for the bucket's start and one for the row, which holds id and values side by
side; a binary search over as many ids costs one for each of its last steps.
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


class _Level:
    """Rows that are sorted by hash; column 0 holds the ids."""

    def __init__(self, rows: Rows, hashes: NDArray[np.uint64]) -> None:
        bits = max(int(rows.shape[0] - 1).bit_length(), 1)
        self.rows, self.hashes = rows, hashes
        self._shift = np.uint64(64 - bits)
        counts = np.bincount((hashes >> self._shift).view(np.int64), minlength=1 << bits)
        kind: type[np.signedinteger[Any]] = np.int32 if rows.shape[0] < 2**31 else np.int64
        self._starts: NDArray[np.signedinteger[Any]] = np.zeros((1 << bits) + 1, kind)
        np.cumsum(counts, out=self._starts[1:])

    def find(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], Rows]:
        bucket = (mix(ids) >> self._shift).view(np.int64)
        place = self._starts[bucket]
        found = self.rows.take(place, axis=0, mode="clip")
        left = np.flatnonzero(found[:, 0] != ids)
        place, end = place[left] + 1, self._starts[bucket[left] + 1]
        while True:
            more = place < end
            left, place, end = left[more], place[more], end[more]
            if not left.size:
                return found[:, 0] == ids, found
            candidates = self.rows.take(place, axis=0)
            found[left] = candidates
            other = candidates[:, 0] != ids[left]
            left, place, end = left[other], place[other] + 1, end[other]


class KeyIndex:
    """A growing table of rows ``[width]`` int64 by their first column, whose values are distinct.

    Rows lie in levels of falling size, so that adding a few to many is cheap. It takes 8 bytes per row and column, 8
    for a row's hash, and 4 to 8 for its bucket.

    Args:
        width: columns of a row, at least 1.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._levels: list[_Level] = []

    def __len__(self) -> int:
        return sum(level.rows.shape[0] for level in self._levels)

    def add(self, rows: Rows) -> NDArray[np.int64]:
        """Add ``rows [N, width]``.

        Returns:
            ids that are there twice now, ``[K]``; empty, or the index is of no use any more.
        """
        if not rows.shape[0]:
            return np.empty(0, np.int64)
        ids = np.ascontiguousarray(rows[:, 0])
        twice = ids[self.find(ids)[0]]
        hashes = mix(ids)
        while self._levels and self._levels[-1].rows.shape[0] <= 2 * rows.shape[0]:
            older = self._levels.pop()
            rows, hashes = np.concatenate((older.rows, rows)), np.concatenate((older.hashes, hashes))
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        level = _Level(rows[order], hashes)
        self._levels.append(level)
        same = hashes[1:] == hashes[:-1]  # equal hashes, equal ids
        return np.unique(np.concatenate((twice, level.rows[1:, 0][same])))

    def find(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], Rows]:
        """``(known [M], rows [M, width])`` of ``ids [M]``; rows of unknown ids are arbitrary."""
        known = np.zeros(ids.shape, np.bool_)
        rows = np.empty((ids.size, self.width), np.int64)
        for start in range(0, ids.size if self._levels else 0, CHUNK):
            part = slice(start, start + CHUNK)
            asked = np.ascontiguousarray(ids[part])
            for number, level in enumerate(self._levels):
                hit, found = level.find(asked)
                if number == 0:
                    known[part], rows[part] = hit, found
                else:
                    known[part] |= hit
                    rows[part][hit] = found[hit]
        return known, rows
