"""The visible labels of one version in memory, by example id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from recdistill_core.batch import TeacherSignal
from recdistill_core.errors import IntegrityError
from recdistill_parquet.labels_index import KeyIndex, Rows
from recdistill_parquet.labels_segments import Columns, SegmentReader, logit_column, select
from recdistill_parquet.labels_state import VersionEntry

#: Columns of a row before its logits, of which two share a column: example id, time.
FIXED = 2
#: numpy copies rows of 32 bytes, each in half a cache line, twice as fast as rows of 24.
LEAST_WIDTH = 4


def visible(columns: Columns, entry: VersionEntry) -> NDArray[np.bool_]:
    """``[N]`` whether labels of ``entry`` are visible; ``columns`` has ``scored_at [N]``."""
    at = columns["scored_at"]
    if entry.revoked is None:
        return np.ones(at.shape, np.bool_)
    return np.zeros(at.shape, np.bool_) if entry.revoked.since is None else at < entry.revoked.since


def count_visible(store: Path, entry: VersionEntry) -> int:
    """Number of visible labels of ``entry``; reads only segments with labels on both sides of a revocation's time."""
    if entry.revoked is None or entry.revoked.since is None:
        return 0 if entry.revoked else entry.count
    since, reader, count = entry.revoked.since, SegmentReader(store), 0
    for segment in entry.segments:
        if segment.last_at < since:
            count += segment.rows
        elif segment.first_at < since:
            count += int(visible(reader.read([segment], ["scored_at"]), entry).sum())
    return count


class VersionView:
    """All visible labels of a version.

    Args:
        store: root of the store. entry: the version; its segments are read at the first look-up.
    """

    def __init__(self, store: Path, entry: VersionEntry) -> None:
        self._store, self._entry = store, entry
        self._tasks = entry.tasks
        self._index = KeyIndex(max(FIXED + -(-len(entry.tasks) // 2), LEAST_WIDTH))
        self._reader = SegmentReader(store)
        self._read = 0

    def follow(self, entry: VersionEntry) -> bool:
        """Take over a later state of the version; False where it is no continuation of what has been read."""
        old = self._entry
        same = (old.tasks, old.revoked) == (entry.tasks, entry.revoked)
        if not same or old.segments[: self._read] != entry.segments[: self._read]:
            return False
        self._entry = entry
        return True

    def read(self, example_id: NDArray[np.int64]) -> TeacherSignal:
        """Labels of ``example_id [M]``; not valid and 0 where there is none."""
        self._load()
        known, rows = self._index.find(example_id)
        if not known.all():
            rows[~known] = 0
        floats = rows.view(np.float32)
        valid = torch.from_numpy(known)
        return TeacherSignal(
            logits={
                task: torch.from_numpy(np.ascontiguousarray(floats[:, 2 * FIXED + place]))
                for place, task in enumerate(self._tasks)
            },
            valid={task: valid.clone() for task in self._tasks},
            version=self._entry.version,
            scored_at=torch.from_numpy(np.ascontiguousarray(rows[:, 1])),
        )

    def _load(self) -> None:
        """Read the segments that were not read yet."""
        fresh = self._entry.segments[self._read :]
        if not fresh:
            return
        names = ["example_id", *(logit_column(task) for task in self._tasks), "scored_at"]
        rows = np.zeros((sum(segment.rows for segment in fresh), self._index.width), np.int64)
        filled = 0
        for segment in fresh:  # one after the other: only their rows are in memory twice
            columns = self._reader.read([segment], names)
            columns = select(columns, visible(columns, self._entry))
            filled += self._fill(rows[filled:], columns)
        twice = self._index.add(rows[:filled])
        if twice.size:
            self._index = KeyIndex(self._index.width)
            self._read = 0
            raise IntegrityError(
                f"example {int(twice[0])} has two labels of version {self._entry.version!r} ({twice.size} such "
                "examples)",
                where=str(self._store),
                fix="capture the version again into a new store",
            )
        self._read = len(self._entry.segments)

    def _fill(self, rows: Rows, columns: Columns) -> int:
        """Write ``columns`` to the first ``rows``; how many."""
        count: int = columns["example_id"].size
        rows[:count, 0], rows[:count, 1] = columns["example_id"], columns["scored_at"]
        floats = rows.view(np.float32)
        for place, task in enumerate(self._tasks):
            floats[:count, 2 * FIXED + place] = columns[logit_column(task)]
        return count
