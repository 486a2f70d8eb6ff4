"""Compaction: the labels of a version in fewer, fuller segments."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from recdistill_core.errors import UsageError
from recdistill_core.files import sync
from recdistill_parquet import labels_log
from recdistill_parquet.labels_findings import Progress
from recdistill_parquet.labels_lease import Lease
from recdistill_parquet.labels_lock import locked, owner
from recdistill_parquet.labels_segments import (
    SEGMENTS,
    Columns,
    SegmentReader,
    concatenate,
    logit_column,
    remove_segment,
    write_segment,
)
from recdistill_parquet.labels_state import Segment, VersionEntry


@dataclass(frozen=True)
class Compacted:
    """Segments and bytes of a version before and after."""

    version: str
    rows: int
    segments_before: int
    segments_after: int
    bytes_before: int
    bytes_after: int


def compact(store: Path, version: str, segment_rows: int, progress: Progress | None = None) -> Compacted:
    """Write the labels of a version to segments of ``segment_rows`` rows, in their order, as one commit.

    Labels, revocations and counts stay as they are, and so do the old files, for older snapshots: ``gc`` removes them.
    Writers and readers may be at work.

    Raises:
        DataError: if the store has no such version. IntegrityError: if a segment is damaged.
        UsageError: if somebody else compacted the version at the same time; nothing is lost.
    """
    head = labels_log.read_head(store)
    entry = labels_log.read_state(store, head).require(version, str(store))
    old = entry.segments
    if all(segment.rows == segment_rows for segment in old[:-1]):
        return _compacted(entry, old)
    lease = Lease(store, version)
    made: list[Segment] = []
    try:
        for part in _parts(store, entry, segment_rows, progress):
            made.append(write_segment(store, entry, len(old) + len(made), part, frozenset()))
        sync(store / SEGMENTS)
        _commit(store, entry, made)
    except BaseException:
        _undo(store, made)
        raise
    finally:
        lease.release()
    return _compacted(entry, tuple(made))


def _parts(store: Path, entry: VersionEntry, segment_rows: int, progress: Progress | None) -> Iterator[Columns]:
    """The version's columns in order, ``segment_rows`` rows at a time; holds that many and one old segment."""
    reader = SegmentReader(store)
    names = ["example_id", *(logit_column(task) for task in entry.tasks), "step", "scored_at"]
    waiting: list[Columns] = []
    rows = done = 0
    for segment in entry.segments:
        waiting.append(reader.read([segment], names))
        rows += segment.rows
        done += segment.rows
        while rows >= segment_rows:
            whole = concatenate(waiting)
            yield {name: column[:segment_rows] for name, column in whole.items()}
            waiting = [{name: column[segment_rows:] for name, column in whole.items()}]
            rows -= segment_rows
        if progress:
            progress(done, entry.count)
    if rows:
        yield concatenate(waiting)


def _commit(store: Path, entry: VersionEntry, made: list[Segment]) -> None:
    removed = [segment.file for segment in entry.segments]
    with locked(store):
        head = labels_log.read_head(store)
        state = labels_log.read_state(store, head)
        now = state.require(entry.version, str(store))
        if [segment.file for segment in now.segments[: len(removed)]] != removed:
            raise UsageError(
                f"version {entry.version!r} was compacted by somebody else at the same time",
                where=str(store),
                fix="nothing is lost; compact it again if it needs it",
            )
        segments = [asdict(segment) for segment in made]
        action = {"do": "compact", "version": entry.version, "removed": removed, "segments": segments}
        labels_log.append(store, head, state, [action], time.time_ns() // 1_000_000, owner())


def _undo(store: Path, made: list[Segment]) -> None:
    """Remove the new files, unless a commit that failed in its last step made them visible."""
    visible = labels_log.read_state(store, labels_log.read_head(store)).files()
    for segment in made:
        if segment.file not in visible:
            remove_segment(store, segment)


def _compacted(entry: VersionEntry, made: tuple[Segment, ...]) -> Compacted:
    old = entry.segments
    before, after = (sum(segment.bytes for segment in segments) for segments in (old, made))
    return Compacted(entry.version, entry.count, len(old), len(made), before, after)
