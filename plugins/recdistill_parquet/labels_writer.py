"""The writer of a label store: one label per example and version, spilled to disk as it grows, visible at commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from recdistill_core.errors import DataError, IntegrityError, LeakError, UsageError, suggest
from recdistill_core.files import sync
from recdistill_core.interfaces import LabelVersion, LabelWriter
from recdistill_parquet.labels_manifest import (
    LOCK,
    SEGMENTS,
    Segment,
    VersionEntry,
    load_manifest,
    save_manifest,
)
from recdistill_parquet.labels_segments import Columns, SegmentReader, logit_column, write_segment

#: Seconds to wait for another process's commit.
LOCK_TIMEOUT = 120.0


class IdSet:
    """A growing set of int64 ids in 8 bytes each: sorted runs of geometrically growing length."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.int64]] = []

    def __len__(self) -> int:
        return sum(run.size for run in self._runs)

    def add(self, ids: NDArray[np.int64]) -> None:
        """Add ``ids [N]``, distinct and none of them in the set."""
        run = np.sort(ids)
        while self._runs and self._runs[-1].size <= 2 * run.size:
            run = np.concatenate((self._runs.pop(), run))
            run.sort(kind="stable")  # merges the two sorted halves
        if run.size:
            self._runs.append(run)

    def known(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """``[N]`` bool: which of ``ids [N]`` are in the set."""
        found = np.zeros(ids.shape, np.bool_)
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, ids), run.size - 1)
            found |= run[place] == ids
        return found

    def add_all(self, other: IdSet) -> None:
        """Add the members of ``other``, none of them in this set."""
        for run in other._runs:
            self.add(run)


class ParquetLabelWriter(LabelWriter):
    """Collects labels of one version; nothing is visible before :meth:`commit`.

    Every ``segment_rows`` rows go to a segment file that nothing refers to yet; the ids for the duplicate check take
    8 bytes each. A writer may commit several times (at checkpoints). As a context manager it closes itself, which
    forgets what was not committed.

    Args:
        store: root of the store; its manifest exists.
        entry: the version to write: mode, tasks, view and facts.
        reader: reads committed segments.
        segment_rows: rows of a segment file, at least 1.
    """

    def __init__(self, store: Path, entry: VersionEntry, reader: SegmentReader, segment_rows: int) -> None:
        self._store, self._entry, self._reader, self._segment_rows = store, entry, reader, segment_rows
        self._buffer: list[Columns] = []
        self._buffered = 0
        self._spilled: list[Segment] = []
        self._pending, self._committed = IdSet(), IdSet()
        self._seen: set[Segment] = set()
        self._closed = False
        manifest = load_manifest(store)
        self._taken = manifest.files()
        self._take_over(manifest.get(entry.version))

    def append(self, example_id: Tensor, logits: Mapping[str, Tensor], *, step: int, scored_at: int) -> None:
        """Add raw logits of examples that have no label of this version yet; all of them or none.

        Args:
            example_id: ``[N]`` int64.
            logits: ``{task: [N]}`` raw, before the sigmoid, finite; kept as float32.
            step: training step at which they were computed.
            scored_at: time at which they were computed, ms since the epoch, UTC.

        Raises:
            LeakError: if an example already has a label of this version, committed or pending.
            DataError: if tasks, shapes or types are not the promised ones, or a logit is NaN or infinite.
            UsageError: if the writer is closed.
        """
        self._require_open()
        place = f"{self._store}, version {self._entry.version!r}, step {step}"
        columns = label_columns(example_id, logits, self._entry.tasks, place)
        ids = columns["example_id"]
        self._refuse_repeats(ids, step)
        columns["step"] = np.full(ids.shape, step, np.int64)
        columns["scored_at"] = np.full(ids.shape, scored_at, np.int64)
        self._pending.add(ids)
        self._buffer.append(columns)
        self._buffered += ids.size
        if self._buffered >= self._segment_rows:
            self._spill(self._segment_rows)

    def commit(self) -> LabelVersion:
        """Make everything appended visible at once, durably, beside what other writers have committed.

        Raises:
            LeakError: if another writer has meanwhile committed a label for one of the examples, or labels of another
                capture mode. Nothing becomes visible.
            DataError: if the version would have no label at all.
            IntegrityError: if the store is damaged, or its lock is held for too long.
        """
        self._require_open()
        self._spill(1)
        sync(self._store / SEGMENTS)
        with locked(self._store):
            manifest = load_manifest(self._store)
            old = manifest.get(self._entry.version)
            self._take_over(old)
            if old is None and not self._spilled:
                raise DataError(
                    f"version {self._entry.version!r} would be committed without any label",
                    where=str(self._store),
                    fix="append the teacher's logits before the commit",
                )
            fresh = tuple(segment for segment in self._spilled if segment.file not in manifest.files())
            if fresh:
                manifest = manifest.with_segments(self._entry, fresh)
                save_manifest(self._store, manifest)
        entry = manifest.require(self._entry.version, str(self._store))
        self._committed.add_all(self._pending)
        self._seen.update(self._spilled)
        self._spilled, self._pending, self._taken = [], IdSet(), manifest.files()
        return entry.label_version()

    def abort(self) -> None:
        """Forget everything appended since the last commit and remove its segment files."""
        spilled = self._spilled
        self._buffer, self._buffered, self._spilled, self._pending = [], 0, [], IdSet()
        if spilled:
            listed = load_manifest(self._store).files()  # a commit that failed in its last fsync is visible already
            for segment in spilled:
                if segment.file not in listed:
                    (self._store / SEGMENTS / segment.file).unlink(missing_ok=True)

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

    def _refuse_repeats(self, ids: NDArray[np.int64], step: int) -> None:
        """Raise LeakError where one of ``ids [N]`` is there twice, pending or committed."""
        repeated = np.ones(ids.shape, np.bool_)
        repeated[np.unique(ids, return_index=True)[1]] = False
        pending, committed = self._pending.known(ids), self._committed.known(ids)
        wrong = repeated | pending | committed
        if wrong.any():
            counts = (
                f"{int(wrong.sum())} of {ids.size} appended examples: {int(committed.sum())} committed before, "
                f"{int(pending.sum())} pending, {int((repeated & ~pending & ~committed).sum())} twice in this call"
            )
            raise self._leak(int(ids[wrong][0]), counts, f"step {step}")

    def _take_over(self, entry: VersionEntry | None) -> None:
        """Learn the ids that others have committed; refuse what cannot stand beside what is pending."""
        if entry is None:
            return
        entry.require_same(self._entry, str(self._store))
        known = self._seen.union(self._spilled)
        for segment in entry.segments:
            if segment in known:
                continue
            ids = self._reader.read([segment], ["example_id"])["example_id"]
            clash = ids[self._pending.known(ids)]
            if clash.size:
                counts = f"{clash.size} of {len(self._pending)} pending examples were committed by another writer"
                raise self._leak(int(clash.min()), counts, f"segment {segment.file}")
            self._committed.add(ids)
            self._seen.add(segment)

    def _leak(self, example: int, counts: str, place: str) -> LeakError:
        return LeakError(
            f"example {example} already has a label of version {self._entry.version!r} ({counts})",
            where=f"{self._store}, {place}",
            fix="score every example once, before the teacher trains on it; a teacher that makes a second pass needs "
            "a version of its own",
        )

    def _spill(self, least: int) -> None:
        """Write the buffer to segment files of ``segment_rows`` rows while it has at least ``least`` rows."""
        if self._buffered < least:
            return
        names = list(self._buffer[0])
        whole = {name: np.concatenate([part[name] for part in self._buffer]) for name in names}
        self._buffer = [whole]
        while self._buffered >= least:
            head = {name: column[: self._segment_rows] for name, column in whole.items()}
            number = len(self._seen) + len(self._spilled)
            self._spilled.append(write_segment(self._store, self._entry, number, head, self._taken))
            whole = {name: column[self._segment_rows :] for name, column in whole.items()}
            self._buffer, self._buffered = [whole], whole["example_id"].size


def label_columns(example_id: Tensor, logits: Mapping[str, Tensor], tasks: Sequence[str], where: str) -> Columns:
    """``example_id`` int64 and ``logit_<task>`` float32 columns of one append, or a DataError."""
    if example_id.ndim != 1 or example_id.dtype != torch.int64:
        raise DataError(
            f"example_id must be [N] int64, got {list(example_id.shape)} {example_id.dtype}".replace("torch.", ""),
            where=where,
        )
    for task in sorted(set(logits) ^ set(tasks)):
        state = "no logits were given" if task in tasks else "logits were given"
        raise DataError(
            f"{state} for task {task!r}{'' if task in tasks else suggest(task, tasks)}",
            where=where,
            fix=f"give logits of exactly these tasks: {', '.join(tasks)}",
        )
    columns: Columns = {"example_id": example_id.detach().cpu().numpy().copy()}
    for task in tasks:
        logit = logits[task].detach().cpu()
        if logit.shape != example_id.shape or not logit.is_floating_point():
            raise DataError(
                f"logits of task {task!r} must be {list(example_id.shape)} floats, got {list(logit.shape)} "
                f"{str(logit.dtype).removeprefix('torch.')}",
                where=where,
            )
        values = logit.to(torch.float32).numpy().copy()
        wrong = ~np.isfinite(values)
        if wrong.any():
            raise DataError(
                f"{int(wrong.sum())} of {values.size} logits of task {task!r} are NaN or infinite, the first one of "
                f"example {int(columns['example_id'][wrong][0])}",
                where=where,
                fix="the teacher has diverged: lower its learning rate and train it again",
            )
        columns[logit_column(task)] = values
    return columns


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the store's lock: one process at a time reads, changes and replaces the manifest."""
    try:
        with FileLock(store / LOCK, timeout=LOCK_TIMEOUT):
            yield
    except Timeout as error:
        raise IntegrityError(
            f"another process has held the label store's lock for {LOCK_TIMEOUT:.0f} s",
            where=str(store / LOCK),
            fix="wait for its commit to end, or end that process; the lock goes with it",
        ) from error
