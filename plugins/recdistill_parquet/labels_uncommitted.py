"""What a writer has been given and no commit has: rows in memory, and segment files that nothing refers to yet.

A large segment is written by a thread while more rows come, one at a time. Where that fails, its rows are in memory
again, and the next append or commit raises the error before it does anything.
"""

from __future__ import annotations

from collections.abc import Set
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recdistill_core.files import sync
from recdistill_parquet.labels_background import Writing
from recdistill_parquet.labels_lease import Lease
from recdistill_parquet.labels_segments import (
    QUARANTINE,
    SEGMENTS,
    Columns,
    SegmentReader,
    concatenate,
    logit_column,
    remove_segment,
    select,
    write_aside,
    write_segment,
)
from recdistill_parquet.labels_state import Segment, VersionEntry

#: Rows of a segment that is worth a thread.
LEAST_IN_BACKGROUND = 100_000


class Uncommitted:
    """Rows of one version on their way to a commit.

    Attributes:
        spilled: segment files of labels. aside: files of what was set aside.

    Args:
        store: root of the store, which is there.
        entry: the version that the rows belong to.
        segment_rows: rows of a segment file, at least 1.
    """

    def __init__(self, store: Path, entry: VersionEntry, segment_rows: int) -> None:
        self._store, self._entry, self._segment_rows = store, entry, segment_rows
        self.spilled: list[Segment] = []
        self.aside: list[Segment] = []
        self._buffer: list[Columns] = []
        self._aside: list[Columns] = []
        self._buffered = 0
        self._writing: Writing | None = None
        self._lease: Lease | None = None

    @property
    def set_aside(self) -> int:
        """Rows that were set aside."""
        in_memory = sum(part["example_id"].size for part in self._aside)
        return in_memory + sum(segment.rows for segment in self.aside)

    @property
    def full(self) -> bool:
        """Whether there are enough rows in memory for a segment."""
        return self._buffered >= self._segment_rows

    @property
    def on_disk(self) -> bool:
        """Whether there are files, or will be."""
        return bool(self.spilled or self.aside or self._writing)

    def places(self) -> list[Columns | Segment]:
        """Where labels are, in no order that matters: each example is in one of them."""
        writing = [self._writing.columns] if self._writing else []
        return [*self.spilled, *writing, *self._buffer]

    def make_room(self, rows: int) -> None:
        """Before so many ``rows`` are added: have no thread at work if they will need it.

        Raises:
            OSError: if a segment could not be written, or whatever else stopped that; its rows are still there.
        """
        if self._writing and (self._writing.done or self._buffered + rows >= self._segment_rows):
            self._join()

    def add(self, columns: Columns) -> None:
        """Keep labels in memory."""
        self._buffer.append(columns)
        self._buffered += columns["example_id"].size

    def add_aside(self, columns: Columns) -> None:
        """Keep what was set aside in memory; ``columns`` has the ``reason``."""
        self._aside.append(columns)

    def spill_full(self, number: int, taken: Set[str]) -> None:
        """Write segments as long as there are enough rows for one; ``number`` and ``taken`` as for :meth:`spill`."""
        self._join()
        self._spill(self._segment_rows, number, taken)

    def spill(self, number: int, taken: Set[str]) -> None:
        """Write everything to files, durably.

        Args:
            number: first number to try in a file's name. taken: names that the store lists.
        """
        self._join()
        if self._buffered:
            self._spill(1, number, taken)
            self._join()
        if self.spilled:
            sync(self._store / SEGMENTS)
        if self._aside:
            self._hold()
            self.aside.append(write_aside(self._store, self._entry, concatenate(self._aside)))
            self._aside = []
            sync(self._store / QUARANTINE)

    def drop(self, ids: NDArray[np.int64], reader: SegmentReader, number: int, taken: Set[str]) -> list[Columns]:
        """Take ``ids [M]`` out of the spilled files; what is left of a file goes to a new one.

        Returns:
            the labels that are left.
        """
        spilled, left, gone = list[Segment](), list[Columns](), list[Segment]()
        names = ["example_id", *(logit_column(task) for task in self._entry.tasks), "step", "scored_at"]
        for segment in self.spilled:
            columns = reader.read([segment], names)
            stays = ~np.isin(columns["example_id"], ids)
            if stays.all():
                spilled.append(segment)
            else:
                columns = select(columns, stays)
                spilled += [self._write(columns, number, taken)] if columns["example_id"].size else []
                gone.append(segment)
            left.append(columns)
        sync(self._store / SEGMENTS)
        self.spilled = spilled
        for segment in gone:
            remove_segment(self._store, segment)
        return left

    def leave_out(self, visible: Set[str], visible_aside: Set[str]) -> bool:
        """Pass over files that a commit has made visible; whether there were any."""
        before = len(self.spilled) + len(self.aside)
        self.spilled = [segment for segment in self.spilled if segment.file not in visible]
        self.aside = [segment for segment in self.aside if segment.file not in visible_aside]
        return len(self.spilled) + len(self.aside) < before

    def remove_files(self) -> None:
        """Remove the files."""
        with suppress(Exception):  # what could not be written needs no removing
            self._join()
        for segment in self.spilled:
            remove_segment(self._store, segment)
        for segment in self.aside:
            remove_segment(self._store, segment, QUARANTINE)

    def forget(self) -> None:
        """Nothing is on its way any more; the files are committed, or removed."""
        self.spilled, self.aside = [], []
        self._buffer, self._aside, self._buffered, self._writing = [], [], 0, None
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _spill(self, least: int, number: int, taken: Set[str]) -> None:
        """Write the buffer to segment files of ``segment_rows`` rows while it has at least ``least`` rows."""
        whole = concatenate(self._buffer)
        self._buffer = [whole]
        while self._buffered >= least:
            part = {name: column[: self._segment_rows] for name, column in whole.items()}
            self._write_full(part, number, taken)
            whole = {name: column[self._segment_rows :] for name, column in whole.items()}
            self._buffer, self._buffered = [whole], whole["example_id"].size

    def _write_full(self, columns: Columns, number: int, taken: Set[str]) -> None:
        if columns["example_id"].size < LEAST_IN_BACKGROUND:
            self.spilled.append(self._write(columns, number, taken))
            return
        self._join()
        self._hold()
        number += len(self.spilled)
        self._writing = Writing(columns, lambda part: write_segment(self._store, self._entry, number, part, taken))

    def _join(self) -> None:
        """Wait for the thread; what it could not write is in memory again."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            self.spilled.append(writing.result())
        except BaseException:
            self._buffer.insert(0, writing.columns)
            self._buffered += writing.rows
            raise

    def _write(self, columns: Columns, number: int, taken: Set[str]) -> Segment:
        self._hold()
        return write_segment(self._store, self._entry, number + len(self.spilled), columns, taken)

    def _hold(self) -> None:
        """Have a lease before the first file is written."""
        if self._lease is None:
            self._lease = Lease(self._store, self._entry.version)
