"""What a writer knows of the labels of its version: committed ones, by whomever, and its own that are pending."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from recdistill_parquet.labels_keys import KeyTable, digest_rows
from recdistill_parquet.labels_segments import Columns


class Known:
    """Which examples have a label, and which one.

    Attributes:
        names: columns of the logits.
        pending, committed: the writer's own labels that no commit has; those that it has seen committed.
        files: committed segments whose labels are in ``committed``.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.files: set[str] = set()
        self.pending, self.committed = self.table(), self.table()

    def table(self) -> KeyTable:
        """An empty table for labels of this version."""
        return KeyTable(np.uint32 if len(self.names) == 1 else np.uint64)

    def digests(self, columns: Columns) -> NDArray[np.uint64]:
        """``[N]`` what tells labels apart."""
        return digest_rows(columns, self.names)

    def compare(
        self, ids: NDArray[np.int64], digests: NDArray[np.uint64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
        """Which rows have a label already; None where none has.

        Of several rows of ``ids`` with one example, the first one counts.

        Returns:
            ``(fresh [N], wrong [N])``: rows whose example has no label yet, and rows whose example has another one.
        """
        hits = [table.hits(ids) for table in (self.pending, self.committed)]
        in_order = np.sort(ids.astype(np.uint32))  # half of the bits in half the time; what is equal is looked at below
        repeated = bool((in_order[1:] == in_order[:-1]).any())
        if not repeated and not any(places.size for places, _ in hits):
            return None
        fresh, wrong = np.ones(ids.shape, np.bool_), np.zeros(ids.shape, np.bool_)
        for places, found in hits:
            fresh[places] = False
            wrong[places] |= digests[places] != found
        if repeated:
            _, first, which = np.unique(ids, return_index=True, return_inverse=True)
            again = first[which] != np.arange(ids.size)
            fresh &= ~again
            wrong |= again & (digests[first[which]] != digests)
        return fresh, wrong

    def add_committed(self, file: str, ids: NDArray[np.int64], digests: NDArray[np.uint64]) -> None:
        """Labels of a segment that somebody has committed, none of them known before."""
        self.committed.add(ids, digests)
        self.files.add(file)

    def settle(self, files: Iterable[str]) -> None:
        """What was pending has been committed, in these segments."""
        if len(self.committed):
            self.committed.add_all(self.pending)
        else:
            self.committed = self.pending
        self.forget_pending()
        self.files.update(files)

    def forget_pending(self) -> None:
        """Nothing is pending any more."""
        self.pending = self.table()

    def forget_committed(self) -> None:
        """What was committed lies in other files now."""
        self.committed, self.files = self.table(), set()
