"""The writer of a label store: each label once, spilled to disk as it grows, visible at commit."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recdistill_core.errors import DataError, IntegrityError, UsageError
from recdistill_core.labels import LabelVersion, LabelWriter
from recdistill_parquet import labels_log
from recdistill_parquet.labels_columns import label_columns
from recdistill_parquet.labels_guard import Guard, Limits
from recdistill_parquet.labels_keys import KeyTable
from recdistill_parquet.labels_known import Known
from recdistill_parquet.labels_lock import locked, owner
from recdistill_parquet.labels_provenance import conflict
from recdistill_parquet.labels_segments import QUARANTINE, SEGMENTS, Columns, SegmentReader, logit_column, select
from recdistill_parquet.labels_state import Segment, VersionEntry, add_action
from recdistill_parquet.labels_uncommitted import Uncommitted

log = logging.getLogger("recdistill.labels")
#: Column of a row's digest while the row is on its way.
_DIGEST = "digest"


class ParquetLabelWriter(LabelWriter):
    """Collects labels of one version; nothing is visible before :meth:`commit`.

    A second label of an example is dropped and counted where it equals the first one, and refused where it does not.
    Every ``segment_rows`` rows go to a segment file that nothing refers to yet; what is known of each label of the
    version takes 13 to 24 bytes. A writer may commit several times (at checkpoints). As a context manager it closes
    itself, which forgets what was not committed.

    Args:
        store: root of the store, which is there.
        entry: the version to write: mode, tasks, view and facts.
        reader: reads committed segments.
        segment_rows: rows of a segment file, at least 1.
        limits: which values are plausible.
    """

    def __init__(
        self, store: Path, entry: VersionEntry, reader: SegmentReader, segment_rows: int, limits: Limits
    ) -> None:
        self._store, self._entry, self._reader = store, entry, reader
        self._names = [logit_column(task) for task in entry.tasks]
        self._guard = Guard(limits, self._names)
        self._known = Known(self._names)
        self._rows = Uncommitted(store, entry, segment_rows)
        self._duplicates = self._sent = 0
        self._closed = False
        self._head = labels_log.read_head(store)
        self._state = labels_log.read_state(store, self._head)
        self._take_over(self._state.get(entry.version))

    @property
    def _pending(self) -> KeyTable:
        return self._known.pending

    @property
    def counts(self) -> dict[str, int]:
        """Rows since the last commit: ``appended`` and pending, ``duplicates`` dropped, ``quarantined`` set aside."""
        return {
            "appended": len(self._pending),
            "duplicates": self._duplicates,
            "quarantined": self._rows.set_aside,
        }

    def append(self, example_id: Tensor, logits: Mapping[str, Tensor], *, step: int, scored_at: int) -> None:
        """Add raw logits; all of them or, where an error is raised, none.

        Args:
            example_id: ``[N]`` int64.
            logits: ``{task: [N]}`` raw, before the sigmoid; kept as float32. A row with a logit that is NaN, infinite
                or absurd is set aside.
            step: training step at which they were computed.
            scored_at: time at which they were computed, ms since the epoch, UTC.

        Raises:
            LeakError: if an example has another label of this version, committed or pending.
            DataError: if tasks, shapes or types are not the promised ones, or too many values are implausible.
            OSError: if a segment of earlier rows, which stay in memory, could not be written.
            UsageError: if the writer is closed.
            OSError: if a segment cannot be written. A thread's failure is raised before anything of this call is
                taken; where the call itself fills a segment, its rows stay pending. The next call tries again.
        """
        self._require_open()
        where = f"{self._store}, version {self._entry.version!r}, step {step}"
        columns = label_columns(example_id, logits, self._entry.tasks, where)
        count = columns["example_id"].size
        columns["step"] = np.full(count, step, np.int64)
        columns["scored_at"] = np.full(count, scored_at, np.int64)
        reason = self._guard.inspect(columns, where)
        fine = columns if reason is None else select(columns, reason == "")
        digests = self._known.digests(fine)
        taken = {**fine, _DIGEST: digests}
        known = self._known.compare(fine["example_id"], digests)
        if known is not None:
            fresh, wrong = known
            if wrong.any():
                raise conflict(self._store, self._entry, fine, wrong, self._places(fine), self._reader)
            taken = select(taken, fresh)
        if self._rows.full:  # a segment could not be written; if it still cannot, nothing is taken
            self._spill_full()
        self._rows.make_room(count)
        if reason is not None and fine["example_id"].size < count:
            self._rows.add_aside({**select(columns, reason != ""), "reason": reason[reason != ""]})
        self._duplicates += fine["example_id"].size - taken["example_id"].size
        self._pending.add(taken["example_id"], taken.pop(_DIGEST))
        self._rows.add(taken)
        if self._rows.full:
            with suppress(OSError):  # the rows are taken and in memory: the next append or commit tries again
                self._spill_full()

    def commit(self) -> LabelVersion:
        """Make everything appended visible at once, durably, beside what other writers have committed.

        Raises:
            LeakError: if another writer has meanwhile committed another label for one of the examples, or labels of
                another capture mode. Nothing becomes visible.
            DataError: if the version would have no label at all, or too many values are implausible.
            IntegrityError: if the store is damaged, or its lock is held for too long.
        """
        self._require_open()
        self._guard.require_few(f"{self._store}, version {self._entry.version!r}")
        self._rows.spill(len(self._known.files), self._state.files())
        with locked(self._store):
            self._refresh()
            old = self._state.get(self._entry.version)
            self._take_over(old)
            if old is None and not self._rows.spilled:
                raise DataError(
                    f"version {self._entry.version!r} would be committed without any label",
                    where=str(self._store),
                    fix="append the teacher's logits before the commit",
                )
            if self._rows.spilled or self._duplicates or self._rows.aside:
                self._write_commit()
        self._known.settle(segment.file for segment in self._rows.spilled)
        self._forget()
        return self._state.require(self._entry.version, str(self._store)).label_version()

    def abort(self) -> None:
        """Forget everything appended since the last commit and remove its segment files."""
        try:
            if self._rows.on_disk:
                self._refresh()  # a commit that failed in its last fsync is visible already
                self._rows.remove_files()
        finally:
            self._known.forget_pending()
            self._forget()

    def close(self) -> None:
        """Abort what was not committed; further calls of ``append`` and ``commit`` are refused."""
        self.abort()
        self._closed = True

    def __enter__(self) -> ParquetLabelWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError("the label writer is closed", fix="ask the store for a new writer")

    def _spill_full(self) -> None:
        self._rows.spill_full(len(self._known.files), self._state.files())

    def _forget(self) -> None:
        """Nothing is on its way any more."""
        self._rows.forget()
        self._duplicates = self._sent = 0

    def _refresh(self) -> None:
        """Read the newest state; what an own commit has made visible although it failed is pending no more."""
        head = labels_log.read_head(self._store)
        self._state = labels_log.read_state(self._store, head, (self._head, self._state))
        self._head = head
        if self._rows.leave_out(self._state.files(), self._state.aside_files()):
            self._duplicates -= self._sent
            self._sent = 0

    def _write_commit(self) -> None:
        for segment in self._rows.spilled:
            if not (self._store / SEGMENTS / segment.file).is_file():
                raise IntegrityError(
                    "a segment that was about to be committed is missing",
                    where=str(self._store / SEGMENTS / segment.file),
                    fix="abort this writer and capture its labels again; leave removing files to the store",
                )
        entry = replace(
            self._entry,
            segments=tuple(self._rows.spilled),
            duplicates=self._duplicates,
            aside=tuple(self._rows.aside),
        )
        actions, self._sent = [add_action(entry)], self._duplicates
        at = time.time_ns() // 1_000_000
        self._head = labels_log.append(self._store, self._head, self._state, actions, at, owner())
        self._state = self._state.after(actions)
        if entry.quarantined:
            log.warning("%d implausible labels were set aside in %s", entry.quarantined, self._store / QUARANTINE)

    def _places(self, columns: Columns) -> list[Columns | Segment]:
        """Where the first label of an example may be: committed, spilled, in memory, in this call."""
        # the newest state: files that were known may be compacted and gone since
        known = self._head, self._state
        entry = labels_log.read_state(self._store, labels_log.read_head(self._store), known).get(self._entry.version)
        return [*(entry.segments if entry else ()), *self._rows.places(), columns]

    def _take_over(self, entry: VersionEntry | None) -> None:
        """Learn what others have committed; drop what is pending and equal, refuse what differs."""
        if entry is None:
            return
        entry.require_same(self._entry, str(self._store))
        if not self._known.files <= {segment.file for segment in entry.segments}:
            self._known.forget_committed()  # compacted: the same labels in other files
        for segment in entry.segments:
            if segment.file in self._known.files:
                continue
            theirs = self._reader.read([segment], ["example_id", *self._names])
            digests = self._known.digests(theirs)
            there, mine = self._pending.find(theirs["example_id"])
            wrong = there & (mine != digests)
            if wrong.any():
                raise conflict(self._store, self._entry, theirs, wrong, [*self._rows.spilled], self._reader, segment)
            if there.any():
                self._drop(theirs["example_id"][there])
            self._known.add_committed(segment.file, theirs["example_id"], digests)

    def _drop(self, ids: NDArray[np.int64]) -> None:
        """Take ``ids [M]``, which another writer has committed with equal labels, out of what is pending."""
        before = sum(segment.rows for segment in self._rows.spilled)
        left = self._rows.drop(ids, self._reader, len(self._known.files), self._state.files())
        self._known.forget_pending()
        for columns in left:
            self._pending.add(columns["example_id"], self._known.digests(columns))
        self._duplicates += before - sum(segment.rows for segment in self._rows.spilled)
