"""The label store: one raw logit per (example, task, teacher version), in Parquet segments under a log of commits.

::

    STORE/manifest.json                    the newest commit; replaced atomically
    STORE/log/<n>.json                     commit n: an immutable entry in a chain
    STORE/segments/<version>-<n>.parquet   immutable: example_id, logit_<task>..., step, scored_at
    STORE/quarantine/<version>-<n>.parquet what was set aside, with the reason
    STORE/store.lock, STORE/store.owner    held while a commit is made, and by whom

A segment that no commit lists (left by a crash, or not committed yet) does not exist for readers. A reader may be
pinned to a snapshot, which later commits do not change.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdistill_core.batch import TeacherSignal
from recdistill_core.errors import DataError, UsageError
from recdistill_core.files import sync
from recdistill_core.labels import AlignedLabels, CaptureMode, LabelChoice, LabelVersion, LogitStore
from recdistill_parquet import labels_log, labels_pins
from recdistill_parquet.labels_aligned import aligned_labels
from recdistill_parquet.labels_compact import Compacted, compact
from recdistill_parquet.labels_findings import Finding, Progress, Thresholds
from recdistill_parquet.labels_gaps import Gaps, find_gaps
from recdistill_parquet.labels_gc import GRACE, Collected, collect
from recdistill_parquet.labels_limits import Limits
from recdistill_parquet.labels_lock import locked, owner
from recdistill_parquet.labels_log import Head
from recdistill_parquet.labels_pins import Pin
from recdistill_parquet.labels_segments import SEGMENTS, SegmentReader
from recdistill_parquet.labels_state import State, VersionEntry, check_version
from recdistill_parquet.labels_verify import Outcomes, verify
from recdistill_parquet.labels_view import VersionView
from recdistill_parquet.labels_writer import ParquetLabelWriter


class ParquetLogitStore(LogitStore):
    """A label store in a directory; implements :class:`recdistill_core.labels.LogitStore`.

    Many writers and readers may work at once, in one process or several, on a file system with POSIX locks and atomic
    rename. A reader holds the labels of the versions it reads in memory: 32 to 48 bytes for an example with one to four
    tasks, and up to three times as many while it reads them first.

    Args:
        path: root of the store; made by the first writer.
        segment_rows: rows of a segment file, at least 1; a writer holds up to twice as many in memory.
        limits: which values are plausible.
        snapshot: id of the commit to read (8 digits of it or more); empty: always the newest. A pinned store is
            read-only.

    Raises:
        DataError: if there is no such snapshot.
    """

    def __init__(
        self, path: Path, segment_rows: int = 1_000_000, limits: Limits | None = None, snapshot: str = ""
    ) -> None:
        if segment_rows < 1:
            raise UsageError(f"segment_rows must be at least 1, got {segment_rows}")
        self.path, self.segment_rows, self.limits = Path(path), segment_rows, limits or Limits()
        self._reader = SegmentReader(self.path)
        self._views: dict[str, VersionView] = {}
        self._known = Head(), State()
        self._pinned = labels_log.find_snapshot(self.path, snapshot) if snapshot else None

    def __reduce__(self) -> tuple[type[ParquetLogitStore], tuple[Any, ...]]:
        pinned = self._pinned.id if self._pinned else ""
        return type(self), (self.path, self.segment_rows, self.limits, pinned)  # a worker reads its own index

    def at(self, snapshot: str) -> ParquetLogitStore:
        """This store as it was after the commit ``snapshot``, read-only. Raises DataError if there is none."""
        return self._at(labels_log.find_snapshot(self.path, snapshot))

    def writer(
        self, version: str, *, tasks: Sequence[str], mode: CaptureMode, view: str, facts: Mapping[str, Any]
    ) -> ParquetLabelWriter:
        """A writer for one version; makes the store where there is none.

        Args:
            version: teacher fingerprint: letters, digits, ``-`` and ``_``.
            tasks: tasks that have logits, distinct.
            mode: how the labels are captured; the same for all labels of a version.
            view: hash of the feature view that the teacher sees.
            facts: JSON-able notes; of several commits the later one's win.

        Raises:
            UsageError: if the version, the tasks or the facts cannot be stored.
            LeakError: if the version is there with another mode.
            IntegrityError: if the version is there with other tasks or another view, or the store is damaged.
        """
        check_version(version)
        if not tasks or len(set(tasks)) != len(tasks):
            raise UsageError(f"a label writer needs distinct tasks, at least one, got {list(tasks)}")
        try:
            noted = json.loads(json.dumps(dict(facts)))
        except (TypeError, ValueError) as error:
            raise UsageError(f"the facts of version {version!r} are not JSON: {error}") from error
        entry = VersionEntry(version, CaptureMode(mode), tuple(tasks), view, noted)
        self._require_newest("write to")
        self._make()
        return ParquetLabelWriter(self.path, entry, self._reader, self.segment_rows, self.limits)

    def revoke(self, version: str, *, reason: str, since: int | None = None) -> None:
        """Make labels of a version invisible, atomically; snapshots from before still show them.

        The examples keep their labels: none can be written for them under this version again.

        Args:
            version: which. reason: why, for those who come later.
            since: only labels scored at this time or later, ms since the epoch, UTC; None: all.

        Raises:
            DataError: if the store has no such version.
            UsageError: without a reason, if it is revoked already, or if no label is that late.
        """
        if not reason.strip():
            raise UsageError(f"revoking version {version!r} needs a reason", fix="say what is wrong with its labels")

        def change(state: State) -> dict[str, Any]:
            old = state.require(version, str(self.path))
            if old.revoked is not None:
                part = "" if old.revoked.since is None else f" since {old.revoked.since} ms"
                raise UsageError(
                    f"version {version!r} is revoked already{part}: {old.revoked.reason}",
                    where=str(self.path),
                    fix="restore it first, to revoke another part of it",
                )
            if since is not None and since > max((segment.last_at for segment in old.segments), default=since):
                raise UsageError(
                    f"no label of version {version!r} was scored at {since} ms or later: nothing would be revoked",
                    where=str(self.path),
                    fix="give an earlier time; 'recdistill labels inspect' shows when labels were scored",
                )
            return {"do": "revoke", "version": version, "since": since, "at": _now(), "reason": reason}

        self._change(change)

    def restore(self, version: str) -> None:
        """Make the revoked labels of a version visible again.

        Raises:
            DataError: if the store has no such version. UsageError: if it is not revoked.
        """

        def change(state: State) -> dict[str, Any]:
            if state.require(version, str(self.path)).revoked is None:
                raise UsageError(f"version {version!r} is not revoked", where=str(self.path), fix="leave it as it is")
            return {"do": "restore", "version": version}

        self._change(change)

    def log(self) -> list[dict[str, Any]]:
        """All commits, oldest first: number, id, parent, ``at`` (ms since the epoch, UTC), ``by`` and actions."""
        return labels_log.history(self.path)

    def versions(self) -> tuple[LabelVersion, ...]:
        """Committed versions, oldest first. Raises IntegrityError if the manifest is damaged."""
        return tuple(entry.label_version() for entry in self._state().entries)

    def read(self, version: str, example_id: NDArray[np.int64]) -> TeacherSignal:
        """Labels of ``example_id [M]`` in that order; repeats are fine.

        Returns:
            float32 logits exactly as they were written; where the store has none, ``valid`` is False and the logit 0.

        Raises:
            DataError: if the store has no such version, or ``example_id`` is not ``[M]`` of integers.
            IntegrityError: if a segment is missing or damaged.
        """
        wanted = np.asarray(example_id)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise DataError(
                f"example_id must be [M] int64, got {list(wanted.shape)} {wanted.dtype}", where=str(self.path)
            )
        entry = self._state().require(version, str(self.path))
        view = self._views.get(version)
        if view is None or not view.follow(entry):
            view = self._views[version] = VersionView(self.path, entry)
        return view.read(wanted.astype(np.int64, copy=False))

    def snapshot_id(self) -> str:
        """32 hex digits of the commit that is read: they name everything that was ever committed up to it."""
        return (self._pinned or labels_log.read_head(self.path)).id

    def aligned(
        self, choice: LabelChoice, *, dataset: str, example_id: NDArray[np.int64], event_time: NDArray[np.int64]
    ) -> AlignedLabels:
        """Labels of all rows of a dataset, from one snapshot, in memory-mapped files that are made once.

        Args:
            choice: versions and policy.
            dataset: the dataset's snapshot id.
            example_id, event_time: ``[N]`` of its rows; times in ms since the epoch, UTC.

        Raises:
            DataError: see :func:`recdistill_core.label_choice.choose_labels`.
            IntegrityError: if a segment is missing or damaged.
        """
        snapshot = self if self._pinned else self._at(labels_log.read_head(self.path))
        return aligned_labels(self.path, snapshot, choice, dataset, example_id, event_time)

    def pin(self, name: str, by: str) -> Pin:
        """Keep what the snapshot that is read needs, whatever is compacted and collected later.

        Args:
            name: of the pin: letters, digits, ``.``, ``-`` and ``_``. by: who wants it, for those who tidy up.

        Raises:
            UsageError: if the name is not usable, or pins another snapshot already. DataError: if the store is empty.
            IntegrityError: if a file that the snapshot needs is gone.
        """
        return labels_pins.pin(self.path, name, by, self._pinned)

    def unpin(self, name: str) -> None:
        """Remove a pin. Raises DataError if there is none of this name."""
        labels_pins.unpin(self.path, name)

    def pins(self) -> tuple[Pin, ...]:
        """All pins, by name. Raises IntegrityError if one is damaged."""
        return labels_pins.read_pins(self.path)

    def verify(
        self,
        outcomes: Outcomes | None = None,
        thresholds: Thresholds | None = None,
        progress: Progress | None = None,
    ) -> tuple[Finding, ...]:
        """What is wrong with the store, errors first; see :func:`recdistill_parquet.labels_verify.verify`."""
        return verify(self.path, outcomes, thresholds, progress)

    def compact(self, version: str, progress: Progress | None = None) -> Compacted:
        """Fewer, fuller segments; see :func:`recdistill_parquet.labels_compact.compact`."""
        self._require_newest("compact")
        return compact(self.path, version, self.segment_rows, progress)

    def gc(self, grace_seconds: float = GRACE, *, dry_run: bool = False) -> Collected:
        """Remove what nobody needs; see :func:`recdistill_parquet.labels_gc.collect`."""
        return collect(self.path, grace_seconds, dry_run=dry_run)

    def gaps(
        self,
        versions: Sequence[str],
        example_id: NDArray[np.int64],
        event_time: NDArray[np.int64],
        min_rows: int = 1,
    ) -> Gaps:
        """Where a dataset has no labels; see :func:`recdistill_parquet.labels_gaps.find_gaps`."""
        return find_gaps(self, versions, example_id, event_time, min_rows)

    def _at(self, head: Head) -> ParquetLogitStore:
        made = type(self)(self.path, self.segment_rows, self.limits)
        made._pinned = head
        return made

    def _require_newest(self, verb: str) -> None:
        if self._pinned is not None:
            raise UsageError(
                f"cannot {verb} a label store that is pinned to snapshot {self._pinned.id}",
                where=str(self.path),
                fix="open it without a snapshot",
            )

    def _change(self, change: Callable[[State], dict[str, Any]]) -> None:
        """Commit one action that does not add labels."""
        self._require_newest("change")
        if not self.path.is_dir():
            State().require("", str(self.path))
        with locked(self.path):
            head = labels_log.read_head(self.path)
            state = labels_log.read_state(self.path, head, self._known)
            labels_log.append(self.path, head, state, [change(state)], _now(), owner())

    def _make(self) -> None:
        """The empty store on disk, unless it is there already."""
        try:
            new = not (self.path / SEGMENTS).is_dir()
            (self.path / SEGMENTS).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(
                "the label store is a file, not a directory", where=str(self.path), fix="give a directory"
            ) from error
        if new:
            sync(self.path.parent)
        if not (self.path / labels_log.MANIFEST).exists():
            with locked(self.path):
                head = labels_log.read_head(self.path)
                if not (self.path / labels_log.MANIFEST).exists():
                    labels_log.write_head(self.path, head)

    def _state(self) -> State:
        """The state that is read; commits that were read before are not read again."""
        head = self._pinned or labels_log.read_head(self.path)
        if head != self._known[0]:
            self._known = head, labels_log.read_state(self.path, head, self._known)
        return self._known[1]


def _now() -> int:
    return time.time_ns() // 1_000_000
