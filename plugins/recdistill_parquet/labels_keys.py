"""Which examples have a label already, and which one: for writing each label once.

Nearly every label that is appended is the first one of its example, so the table answers "surely not there" from one
bit, and builds an exact index only where somebody has to know more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MIX = np.uint64(0x9E3779B97F4A7C15)
#: Ids that are worked on at once; what is needed of them stays in the cache.
CHUNK = 1 << 12
#: Bytes of the smallest bit map; the system gives it pages as they are written to.
LEAST_MAP = 1 << 24
_BIT = (1 << np.arange(8)).astype(np.uint8)

_NO_PLACES, _NO_DIGESTS = np.empty(0, np.intp), np.empty(0, np.uint64)

Rows = NDArray[np.signedinteger[Any]]


class KeyTable:
    """A growing table of example ids and digests of their logits.

    From some millions on, an id takes 9 to 10 bytes and its digest 4 or 8, and once ids had to be compared 5 to 6 more:
    24 at most. The map of a smaller table takes up to 16 MB.

    Args:
        digest: type of the digests: uint64, or uint32 where all of them are below 2 ** 32.
    """

    def __init__(self, digest: type[np.uint32 | np.uint64] = np.uint64) -> None:
        self._ids, self._digests = np.empty(0, np.int64), np.empty(0, digest)
        self._count = 0
        self._seen: _BitMap | None = None
        self._chains = _Chains(0)

    def __len__(self) -> int:
        return self._count

    def add(self, ids: NDArray[np.int64], digests: NDArray[np.uint64]) -> None:
        """Add ``ids [N]``, distinct and none of them in the table, with the digests ``[N]`` of their logits."""
        first, self._count = self._count, self._count + ids.size
        self._ids, self._digests = _longer(self._ids, self._count), _longer(self._digests, self._count)
        self._ids[first : self._count] = ids
        self._digests[first : self._count] = digests
        if self._seen is None or self._seen.capacity < self._count:
            self._seen = _BitMap(self._count)
            first = 0
        for part in _chunks(first, self._count):
            self._seen.add(self._ids[part])

    def find(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
        """``(known [N], digest [N])`` of ``ids [N]``; digests of unknown ones are 0."""
        known, digests = np.zeros(ids.shape, np.bool_), np.zeros(ids.shape, np.uint64)
        places, found = self.hits(ids)
        known[places], digests[places] = True, found
        return known, digests

    def hits(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
        """``(place [K], digest [K])``: where in ``ids [N]`` there are known ones, and their digests."""
        if self._seen is None:
            return _NO_PLACES, _NO_DIGESTS
        places, rows = list[NDArray[np.intp]](), list[Rows]()
        for part in _chunks(0, ids.size):
            asked = self._seen.maybe(ids[part])
            if asked.size:
                found = self._rows(ids[part][asked])
                places.append(asked[found >= 0] + part.start)
                rows.append(found[found >= 0])
        if not places:
            return _NO_PLACES, _NO_DIGESTS
        return np.concatenate(places), self._digests[np.concatenate(rows)].astype(np.uint64, copy=False)

    def add_all(self, other: KeyTable) -> None:
        """Add what ``other`` holds, none of it in this table."""
        self.add(other._ids[: other._count], other._digests[: other._count].astype(np.uint64, copy=False))

    def _rows(self, ids: NDArray[np.int64]) -> Rows:
        """``[N]`` row of each id, -1 where there is none."""
        if self._chains.capacity < self._count:
            self._chains = _Chains(self._count)
        self._chains.link(self._ids[: self._count])
        return self._chains.find(self._ids, ids)


class _BitMap:
    """One bit for an id: where it is not set, the id was not added. Ids that lie close together have bits of their own.

    Args:
        count: ids that it is made for; 8 to 16 bits each, so that one in 8 of those that come in no order has its bit
            set already.
    """

    def __init__(self, count: int = 0) -> None:
        self.capacity = LEAST_MAP  # ids, and bytes
        while self.capacity < count:
            self.capacity *= 2
        self._bytes = np.zeros(self.capacity, np.uint8)
        self._mask, self._log = np.int64(self.capacity - 1), np.int64(self.capacity.bit_length() - 1)

    def maybe(self, ids: NDArray[np.int64]) -> NDArray[np.intp]:
        """Places in ``ids [N]`` of those that may have been added."""
        place, bit = self._bits(ids)
        found = self._bytes.take(place, mode="clip") & bit
        return found.nonzero()[0] if found.any() else _NO_PLACES

    def add(self, ids: NDArray[np.int64]) -> None:
        place, bit = self._bits(ids)
        while place.size:  # of several ids in one byte the last one is written; the others go again
            self._bytes[place] |= bit
            lost = ((self._bytes.take(place, mode="clip") & bit) == 0).nonzero()[0]
            place, bit = place[lost], bit[lost]

    def _bits(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        high = ids >> self._log  # ids in a row lie in bytes in a row: that no two of a call share one is usual
        return (high >> 3 ^ ids) & self._mask, _BIT.take(high & 7, mode="clip")


class _Chains:
    """Rows by a hash of their id: the newest row of each hash, and for each row the one before it.

    Args:
        count: rows that it is made for; 5 to 6 bytes each.
    """

    def __init__(self, count: int) -> None:
        bits = max(int(count).bit_length() - 2, 10)
        self.capacity = 4 << bits
        kind: type[np.signedinteger[Any]] = np.int32 if self.capacity < 2**31 else np.int64
        self._newest: Rows = np.full(1 << bits, -1, kind)
        self._before: Rows = np.empty(0, kind)
        self._shift = np.uint64(64 - bits)
        self._count = 0

    def link(self, ids: NDArray[np.int64]) -> None:
        """Take in the rows of ``ids [count]`` that are not in yet."""
        self._before = _longer(self._before, ids.size)
        for part in _chunks(self._count, ids.size):
            slot = self._slot(ids[part])
            rows = np.arange(part.start, part.stop, dtype=self._newest.dtype)
            while rows.size:  # of several rows with one hash the last one is written; the others go again
                self._before[rows] = self._newest.take(slot, mode="clip")
                self._newest[slot] = rows
                lost = (self._newest.take(slot, mode="clip") != rows).nonzero()[0]
                rows, slot = rows[lost], slot[lost]
        self._count = ids.size

    def find(self, table: NDArray[np.int64], ids: NDArray[np.int64]) -> Rows:
        """``[N]`` row of each of ``ids [N]`` in ``table``, -1 where there is none."""
        rows = self._newest.take(self._slot(ids), mode="clip")
        left = np.flatnonzero(rows >= 0)
        while left.size:
            here = rows[left]
            other = table[here] != ids[left]
            left = left[other]
            rows[left] = self._before[here[other]]
            left = left[rows[left] >= 0]
        return rows

    def _slot(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        mixed = ids.view(np.uint64) * _MIX
        mixed ^= mixed >> np.uint64(32)
        return ((mixed * _MIX) >> self._shift).view(np.int64)


def _longer(array: NDArray[Any], count: int) -> NDArray[Any]:
    """``array`` with room for ``count`` rows."""
    if array.size < count:
        array.resize(count + max(count // 16, CHUNK), refcheck=False)  # in place where it can: no second copy
    return array


def _chunks(first: int, last: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, last)) for start in range(first, last, CHUNK))


def digest_rows(columns: Mapping[str, NDArray[Any]], names: Sequence[str]) -> NDArray[np.uint64]:
    """``[N]`` a 64-bit digest of each row's float32 values; up to two columns it is the values themselves.

    0.0 and -0.0 are one value. Rows with more columns collide with a probability of 2 ** -64.
    """
    bits = [(columns[name].astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.uint64) for name in names]
    if len(bits) <= 2:
        return bits[0] if len(bits) == 1 else bits[0] << np.uint64(32) | bits[1]
    total = np.zeros_like(bits[0])
    for column in bits:
        total = (total ^ column) * _MIX
        total ^= total >> np.uint64(29)
    return total
