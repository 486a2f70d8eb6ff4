"""The writer of a label store: each label once, spilled to disk as it grows, visible at commit."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recdistill_core.errors import DataError, IntegrityError, UsageError
from recdistill_core.files import sync
from recdistill_core.labels import LabelVersion, LabelWriter
from recdistill_parquet import labels_log
from recdistill_parquet.labels_columns import label_columns
from recdistill_parquet.labels_guard import Guard, Limits
from recdistill_parquet.labels_keys import KeyTable, digest_rows
from recdistill_parquet.labels_lease import Lease
from recdistill_parquet.labels_lock import locked, owner
from recdistill_parquet.labels_provenance import conflict
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
from recdistill_parquet.labels_state import Segment, VersionEntry, add_action

log = logging.getLogger("recdistill.labels")


class ParquetLabelWriter(LabelWriter):
    """Collects labels of one version; nothing is visible before :meth:`commit`.

    A second label of an example is dropped and counted where it equals the first one, and refused where it does not.
    Every ``segment_rows`` rows go to a segment file that nothing refers to yet; what is known of each example takes 16
    bytes. A writer may commit several times (at checkpoints). As a context manager it closes itself, which forgets what
    was not committed.

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
        self._store, self._entry, self._reader, self._segment_rows = store, entry, reader, segment_rows
        self._names = [logit_column(task) for task in entry.tasks]
        self._guard = Guard(limits, self._names)
        self._buffer: list[Columns] = []
        self._aside: list[Columns] = []
        self._buffered = self._duplicates = 0
        self._spilled: list[Segment] = []
        self._spilled_aside: list[Segment] = []
        self._lease: Lease | None = None
        self._sent = 0
        self._pending, self._committed = KeyTable(), KeyTable()
        self._seen: set[str] = set()
        self._closed = False
        self._head = labels_log.read_head(store)
        self._state = labels_log.read_state(store, self._head)
        self._take_over(self._state.get(entry.version))

    @property
    def counts(self) -> dict[str, int]:
        """Rows since the last commit: ``appended`` and pending, ``duplicates`` dropped, ``quarantined`` set aside."""
        aside = sum(part["example_id"].size for part in self._aside)
        aside += sum(segment.rows for segment in self._spilled_aside)
        return {"appended": len(self._pending), "duplicates": self._duplicates, "quarantined": aside}

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
            UsageError: if the writer is closed.
        """
        self._require_open()
        where = f"{self._store}, version {self._entry.version!r}, step {step}"
        columns = label_columns(example_id, logits, self._entry.tasks, where)
        count = columns["example_id"].size
        columns["step"] = np.full(count, step, np.int64)
        columns["scored_at"] = np.full(count, scored_at, np.int64)
        reason = self._guard.inspect(columns, where)
        fine, aside = select(columns, reason == ""), select(columns, reason != "")
        fresh = self._fresh(fine)
        self._duplicates += fine["example_id"].size - fresh["example_id"].size
        if aside["example_id"].size:
            self._aside.append({**aside, "reason": reason[reason != ""]})
        self._pending.add(fresh["example_id"], digest_rows(fresh, self._names))
        self._buffer.append(fresh)
        self._buffered += fresh["example_id"].size
        if self._buffered >= self._segment_rows:
            self._spill(self._segment_rows)

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
        self._spill(1)
        self._spill_aside()
        with locked(self._store):
            self._refresh()
            old = self._state.get(self._entry.version)
            self._take_over(old)
            if old is None and not self._spilled:
                raise DataError(
                    f"version {self._entry.version!r} would be committed without any label",
                    where=str(self._store),
                    fix="append the teacher's logits before the commit",
                )
            if self._spilled or self._duplicates or self._spilled_aside:
                self._write_commit()
        self._committed.add_all(self._pending)
        self._seen.update(segment.file for segment in self._spilled)
        self._forget()
        return self._state.require(self._entry.version, str(self._store)).label_version()

    def abort(self) -> None:
        """Forget everything appended since the last commit and remove its segment files."""
        try:
            if self._spilled or self._spilled_aside:
                self._refresh()  # a commit that failed in its last fsync is visible already
                for segment in self._spilled:
                    remove_segment(self._store, segment)
                for segment in self._spilled_aside:
                    remove_segment(self._store, segment, QUARANTINE)
        finally:
            self._buffer, self._aside, self._buffered = [], [], 0
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

    def _forget(self) -> None:
        """Nothing is pending any more."""
        self._spilled, self._spilled_aside, self._pending = [], [], KeyTable()
        self._duplicates = self._sent = 0
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _refresh(self) -> None:
        """Read the newest state; what an own commit has made visible although it failed is pending no more."""
        head = labels_log.read_head(self._store)
        self._state = labels_log.read_state(self._store, head, (self._head, self._state))
        self._head = head
        visible = self._state.files(), self._state.aside_files()
        spilled = [segment for segment in self._spilled if segment.file not in visible[0]]
        aside = [segment for segment in self._spilled_aside if segment.file not in visible[1]]
        if (len(spilled), len(aside)) != (len(self._spilled), len(self._spilled_aside)):
            self._spilled, self._spilled_aside = spilled, aside
            self._duplicates -= self._sent
            self._sent = 0

    def _write_commit(self) -> None:
        for segment in self._spilled:
            if not (self._store / SEGMENTS / segment.file).is_file():
                raise IntegrityError(
                    "a segment that was about to be committed is missing",
                    where=str(self._store / SEGMENTS / segment.file),
                    fix="abort this writer and capture its labels again; leave removing files to the store",
                )
        entry = replace(
            self._entry,
            segments=tuple(self._spilled),
            duplicates=self._duplicates,
            aside=tuple(self._spilled_aside),
        )
        actions, self._sent = [add_action(entry)], self._duplicates
        at = time.time_ns() // 1_000_000
        self._head = labels_log.append(self._store, self._head, self._state, actions, at, owner())
        self._state = self._state.after(actions)
        if entry.quarantined:
            log.warning("%d implausible labels were set aside in %s", entry.quarantined, self._store / QUARANTINE)

    def _fresh(self, columns: Columns) -> Columns:
        """The rows that have no label yet; equal second labels are left out, other ones are refused."""
        ids, digests = columns["example_id"], digest_rows(columns, self._names)
        first = np.unique(ids, return_index=True)[1]
        fresh = np.zeros(ids.shape, np.bool_)
        fresh[first] = True
        known = KeyTable()
        known.add(ids[first], digests[first])
        for table in (known, self._pending, self._committed):
            there, found = table.find(ids)
            wrong = there & (found != digests)
            if wrong.any():
                raise conflict(self._store, self._entry, columns, wrong, self._where_pending(columns), self._reader)
            if table is not known:
                fresh &= ~there
        return select(columns, fresh)

    def _where_pending(self, columns: Columns) -> list[Columns | Segment]:
        """Where the first label of an example may be, newest last: committed, spilled, buffered, in this call."""
        entry = self._state.get(self._entry.version)
        return [*(entry.segments if entry else ()), *self._spilled, *self._buffer, columns]

    def _take_over(self, entry: VersionEntry | None) -> None:
        """Learn what others have committed; drop what is pending and equal, refuse what differs."""
        if entry is None:
            return
        entry.require_same(self._entry, str(self._store))
        if not self._seen <= {segment.file for segment in entry.segments}:  # compacted: the same labels in other files
            self._committed, self._seen = KeyTable(), set()
        for segment in entry.segments:
            if segment.file in self._seen:
                continue
            theirs = self._reader.read([segment], ["example_id", *self._names])
            digests = digest_rows(theirs, self._names)
            there, mine = self._pending.find(theirs["example_id"])
            if (there & (mine != digests)).any():
                wrong = there & (mine != digests)
                raise conflict(self._store, self._entry, theirs, wrong, [*self._spilled], self._reader, segment)
            if there.any():
                self._drop(theirs["example_id"][there])
            self._committed.add(theirs["example_id"], digests)
            self._seen.add(segment.file)

    def _drop(self, ids: NDArray[np.int64]) -> None:
        """Take ``ids [M]``, which another writer has committed with equal labels, out of what is pending."""
        spilled, pending, dropped, gone = list[Segment](), KeyTable(), 0, list[Segment]()
        for segment in self._spilled:
            columns = self._reader.read([segment], ["example_id", *self._names, "step", "scored_at"])
            stays = ~np.isin(columns["example_id"], ids)
            if stays.all():
                spilled.append(segment)
            else:
                columns = select(columns, stays)
                spilled += [self._write(columns)] if columns["example_id"].size else []
                dropped += int((~stays).sum())
                gone.append(segment)
            pending.add(columns["example_id"], digest_rows(columns, self._names))
        sync(self._store / SEGMENTS)
        self._spilled, self._pending = spilled, pending
        self._duplicates += dropped
        for segment in gone:
            remove_segment(self._store, segment)

    def _spill(self, least: int) -> None:
        """Write the buffer to segment files of ``segment_rows`` rows while it has at least ``least`` rows."""
        if self._buffered < least:
            return
        whole = concatenate(self._buffer)
        self._buffer = [whole]
        while self._buffered >= least:
            self._spilled.append(self._write({name: column[: self._segment_rows] for name, column in whole.items()}))
            whole = {name: column[self._segment_rows :] for name, column in whole.items()}
            self._buffer, self._buffered = [whole], whole["example_id"].size
        sync(self._store / SEGMENTS)

    def _spill_aside(self) -> None:
        """Write what was set aside."""
        if self._aside:
            self._hold()
            self._spilled_aside.append(write_aside(self._store, self._entry, concatenate(self._aside)))
            self._aside = []
            sync(self._store / QUARANTINE)

    def _write(self, columns: Columns) -> Segment:
        self._hold()
        number = len(self._seen) + len(self._spilled)
        return write_segment(self._store, self._entry, number, columns, self._state.files())

    def _hold(self) -> None:
        """Have a lease before the first file is written."""
        if self._lease is None:
            self._lease = Lease(self._store, self._entry.version)
