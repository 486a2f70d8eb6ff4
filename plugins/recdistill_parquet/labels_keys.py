"""Which examples have a label already, and which one: for writing each label once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MIX = np.uint64(0x9E3779B97F4A7C15)


class KeyTable:
    """A growing table of example ids and digests of their logits, 16 bytes each: sorted runs of growing length."""

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.int64], NDArray[np.uint64]]] = []

    def __len__(self) -> int:
        return sum(ids.size for ids, _ in self._runs)

    def add(self, ids: NDArray[np.int64], digests: NDArray[np.uint64]) -> None:
        """Add ``ids [N]``, distinct and none of them in the table, with the digests ``[N]`` of their logits."""
        order = np.argsort(ids)
        run = ids[order], digests[order]
        while self._runs and self._runs[-1][0].size <= 2 * run[0].size:
            older = self._runs.pop()
            ids, digests = np.concatenate((older[0], run[0])), np.concatenate((older[1], run[1]))
            order = np.argsort(ids, kind="stable")  # merges the two sorted halves
            run = ids[order], digests[order]
        if run[0].size:
            self._runs.append(run)

    def find(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
        """``(known [N], digest [N])`` of ``ids [N]``; digests of unknown ones are arbitrary."""
        known, digests = np.zeros(ids.shape, np.bool_), np.zeros(ids.shape, np.uint64)
        for run, run_digests in self._runs:
            place = np.minimum(np.searchsorted(run, ids), run.size - 1)
            hit = run[place] == ids
            digests[hit] = run_digests[place[hit]]
            known |= hit
        return known, digests

    def add_all(self, other: KeyTable) -> None:
        """Add what ``other`` holds, none of it in this table."""
        for ids, digests in other._runs:
            self.add(ids, digests)

    def ids(self) -> NDArray[np.int64]:
        """``[len]`` all ids, in no particular order."""
        return np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in self._runs)])


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
