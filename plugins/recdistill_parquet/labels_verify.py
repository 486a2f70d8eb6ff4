"""Reads all of a label store and says what is wrong where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import DataError, IntegrityError, RecdistillError
from recdistill_parquet import labels_log
from recdistill_parquet.labels_findings import Finding, Progress, Severity, Thresholds, calibration
from recdistill_parquet.labels_guard import LEAST_ROWS, stability
from recdistill_parquet.labels_segments import QUARANTINE, SEGMENTS, Columns, SegmentReader, logit_column, select
from recdistill_parquet.labels_state import Segment, State, VersionEntry
from recdistill_parquet.labels_tidy import Needs, needs, spares
from recdistill_parquet.labels_view import visible

#: ``{task: (example_id [N], label [N] of 0 and 1)}``: outcomes that arrived after the labels were captured.
Outcomes = Mapping[str, tuple[NDArray[np.int64], NDArray[Any]]]


def verify(
    store: Path,
    outcomes: Outcomes | None = None,
    thresholds: Thresholds | None = None,
    progress: Progress | None = None,
) -> tuple[Finding, ...]:
    """Findings, errors first; changes nothing.

    Args:
        store: root of the store.
        outcomes: labels of a dataset to compare the logits with, by task.
        thresholds: from where on a measure is worth a warning.
        progress: called after each segment with (done, of).

    Raises:
        DataError: if there is no store.
    """
    try:
        labels_log.require_store(store)
        needed = needs(store)
    except DataError:
        raise
    except RecdistillError as error:
        return (Finding(Severity.ERROR, "log", error.where or str(store), error.what),)
    found = [*_state_files(store, needed), *_spares(store, needed)]
    checker = _Segments(store, progress, len(needed.files()))
    newest = needed.states["the newest snapshot"]
    for who, state in needed.states.items():
        found += checker.damage(state, who)
    for entry in newest.entries:
        found += _version(entry, checker.columns(entry), outcomes or {}, thresholds or Thresholds())
    order = list(Severity)
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def _state_files(store: Path, needed: Needs) -> Iterator[Finding]:
    """Files that only save time may be damaged, but somebody should know."""
    for path in sorted((store / labels_log.LOG).glob("*.state")):
        try:
            plain = labels_log.checked(path.read_bytes(), path, "a stored state")
            if int(plain["number"]) <= needed.head.number:
                at = labels_log.find_snapshot(store, plain["id"])
                if State.parse(plain["state"]) != labels_log.read_state(store, at, shortcuts=False):
                    raise ValueError("it is another one than the commits give")
        except (RecdistillError, KeyError, TypeError, ValueError) as error:
            yield Finding(
                Severity.WARNING, "log", str(path), f"a stored state is not usable, which only costs time: {error}"
            )


def _spares(store: Path, needed: Needs) -> Iterator[Finding]:
    told = {
        "leftover": "left by a crash, or by a writer at work; nobody reads it",
        "superseded": "replaced by compaction; only snapshots that are not pinned need it",
        "view": "an aligned view of a snapshot that is neither the newest nor pinned",
        "unknown": "nothing that a label store writes",
    }
    for spare in spares(store, needed):
        link = ", a symbolic link" if spare.path.is_symlink() else ""
        severity = Severity.WARNING if spare.why == "unknown" or link else Severity.INFO
        yield Finding(severity, spare.why, str(spare.path), f"{told[spare.why]}{link}")


class _Segments:
    """Reads each file once for its damage."""

    def __init__(self, store: Path, progress: Progress | None, of: int) -> None:
        self._readers = {SEGMENTS: SegmentReader(store), QUARANTINE: SegmentReader(store, QUARANTINE)}
        self._progress, self._of = progress, of
        self._seen: set[tuple[str, str]] = set()
        self._broken: set[str] = set()

    def damage(self, state: State, who: str) -> Iterator[Finding]:
        """Errors of the files of a state that were not looked at yet."""
        for entry in state.entries:
            for folder, segments in ((SEGMENTS, entry.segments), (QUARANTINE, entry.aside)):
                for segment in segments:
                    if (folder, segment.file) not in self._seen:
                        yield from self._look(folder, segment, f"version {entry.version!r}", who)

    def _look(self, folder: str, segment: Segment, whose: str, who: str) -> Iterator[Finding]:
        self._seen.add((folder, segment.file))
        try:
            self._readers[folder].content(segment)
        except IntegrityError as error:
            check = "segment" if folder == SEGMENTS else "quarantine"
            if folder == SEGMENTS:
                self._broken.add(segment.file)
            what = f"{error.what}; {whose}, {segment.rows} rows, needed by {who}"
            yield Finding(Severity.ERROR, check, error.where or "", what)
        if self._progress:
            self._progress(len(self._seen), self._of)

    def columns(self, entry: VersionEntry) -> Columns:
        """Ids, logits and times of all rows of the segments that can be read."""
        names = ["example_id", *(logit_column(task) for task in entry.tasks), "scored_at"]
        return self._readers[SEGMENTS].read([part for part in entry.segments if part.file not in self._broken], names)


def _version(entry: VersionEntry, columns: Columns, outcomes: Outcomes, limits: Thresholds) -> Iterator[Finding]:
    ids = np.sort(columns["example_id"])
    twice = np.unique(ids[1:][ids[1:] == ids[:-1]])
    where = f"version {entry.version!r}"
    if twice.size:
        what = f"{twice.size} examples have more than one label, the first one example {int(twice[0])}"
        yield Finding(Severity.ERROR, "keys", where, what, float(twice.size))
    share = entry.quarantined / max(entry.count + entry.quarantined, 1)
    if entry.quarantined:
        severity = Severity.WARNING if share > limits.quarantined else Severity.INFO
        what = f"{entry.quarantined} implausible rows were set aside, {share:.3%} of the version"
        yield Finding(severity, "quarantine", where, what, share)
    for task in entry.tasks:
        logit = columns[logit_column(task)]
        third = logit.size // 3
        if third >= LEAST_ROWS:
            moved = stability(logit[:third], logit[-third:])
            severity = Severity.WARNING if moved > limits.drift else Severity.INFO
            what = f"population stability index {moved:.3f} between the first and the last third of its labels"
            yield Finding(severity, "drift", f"{where}, task {task!r}", what, moved)
    seen = select(columns, visible(columns, entry))
    for task in sorted(set(outcomes) & set(entry.tasks)):
        yield from _calibration(entry, seen, task, outcomes[task], limits)


def _calibration(
    entry: VersionEntry,
    columns: Columns,
    task: str,
    outcome: tuple[NDArray[np.int64], NDArray[Any]],
    limits: Thresholds,
) -> Iterator[Finding]:
    _, mine, theirs = np.intersect1d(columns["example_id"], outcome[0], return_indices=True)
    if not mine.size:
        return
    found = calibration(columns[logit_column(task)][mine], outcome[1][theirs])
    bad = found.deviation > limits.calibration and found.significant
    what = (
        f"mean probability {found.predicted:.4g} against {found.observed:.4g} positives of {found.rows} examples; "
        f"expected calibration error {found.error:.4g}"
    )
    severity = Severity.WARNING if bad else Severity.INFO
    yield Finding(severity, "calibration", f"version {entry.version!r}, task {task!r}", what, found.error)
