"""The label store: one raw logit per (example, task, teacher version), in Parquet segments under one manifest.

::

    STORE/manifest.json                    what is committed; replaced atomically
    STORE/manifest.lock                    held while the manifest is read, changed and replaced
    STORE/segments/<version>-<n>.parquet   immutable: example_id, logit_<task>..., step, scored_at

A segment that the manifest does not list (left by a crash, or not committed yet) does not exist for readers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recdistill_core.batch import TeacherSignal
from recdistill_core.errors import DataError, IntegrityError, UsageError
from recdistill_core.interfaces import CaptureMode, LabelVersion, LogitStore
from recdistill_parquet.labels_manifest import (
    MANIFEST,
    SEGMENTS,
    Manifest,
    Segment,
    VersionEntry,
    check_version,
    load_manifest,
    save_manifest,
)
from recdistill_parquet.labels_segments import Columns, SegmentReader, logit_column
from recdistill_parquet.labels_writer import ParquetLabelWriter, locked


@dataclass(frozen=True)
class _Index:
    """All labels of a version sorted by example id: ``columns`` of ``[count]`` rows."""

    segments: tuple[Segment, ...]
    columns: Columns


class ParquetLogitStore(LogitStore):
    """A label store in a directory; implements :class:`recdistill_core.interfaces.LogitStore`.

    Many writers and readers may work at once, in one process or several, on a file system with POSIX locks and atomic
    rename. A reader holds the labels of the versions it reads in memory: 16 bytes and 4 per task for an example.

    Args:
        path: root of the store; made by the first writer.
        segment_rows: rows of a segment file, at least 1; a writer holds that many in memory.
    """

    def __init__(self, path: Path, segment_rows: int = 1_000_000) -> None:
        if segment_rows < 1:
            raise UsageError(f"segment_rows must be at least 1, got {segment_rows}")
        self.path, self.segment_rows = Path(path), segment_rows
        self._reader = SegmentReader(self.path)
        self._indexes: dict[str, _Index] = {}
        self._manifest = Manifest()
        self._signature: tuple[int, ...] = ()

    def __reduce__(self) -> tuple[type[ParquetLogitStore], tuple[Path, int]]:
        return type(self), (self.path, self.segment_rows)  # a worker process reads its own index

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
        self._make()
        return ParquetLabelWriter(self.path, entry, self._reader, self.segment_rows)

    def versions(self) -> tuple[LabelVersion, ...]:
        """Committed versions, oldest first. Raises IntegrityError if the manifest is damaged."""
        return tuple(entry.label_version() for entry in self._current().entries)

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
        entry = self._current().require(version, str(self.path))
        columns = self._index(entry).columns
        known, wanted = columns["example_id"], wanted.astype(np.int64, copy=False)
        order = np.argsort(wanted)  # sorted look-ups walk the index in order: twice as fast on millions of labels
        place = np.empty(wanted.shape, np.int64)
        place[order] = np.minimum(np.searchsorted(known, wanted[order]), max(known.size - 1, 0))
        found = known[place] == wanted if known.size else np.zeros(wanted.shape, np.bool_)
        valid = torch.from_numpy(found)

        def pick(name: str) -> torch.Tensor:
            column = columns[name]
            picked = np.where(found, column[place], column.dtype.type(0)) if column.size else np.zeros(wanted.shape)
            return torch.from_numpy(picked.astype(column.dtype, copy=False))

        return TeacherSignal(
            logits={task: pick(logit_column(task)) for task in entry.tasks},
            valid={task: valid.clone() for task in entry.tasks},
            version=version,
            scored_at=pick("scored_at"),
        )

    def snapshot_id(self) -> str:
        """32 hex digits of what is committed now; equal commits in equal order give equal ids."""
        return self._current().snapshot_id()

    def _make(self) -> None:
        """The empty store on disk, unless it is there already."""
        try:
            (self.path / SEGMENTS).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(
                "the label store is a file, not a directory", where=str(self.path), fix="give a directory"
            ) from error
        with locked(self.path):
            manifest = load_manifest(self.path)
            if not (self.path / MANIFEST).exists():
                save_manifest(self.path, manifest)

    def _current(self) -> Manifest:
        """The manifest on disk, parsed again only where the file is another one than before."""
        try:
            facts = (self.path / MANIFEST).stat()
            signature: tuple[int, ...] = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        except OSError:
            signature = ()
        if not signature or signature != self._signature:
            self._manifest = load_manifest(self.path)
            self._signature = signature
        return self._manifest

    def _index(self, entry: VersionEntry) -> _Index:
        """The sorted labels of a version; what was committed since the last call is merged in."""
        index = self._indexes.get(entry.version)
        old = index.segments if index else ()
        if index and old == entry.segments:
            return index
        names = ["example_id", *(logit_column(task) for task in entry.tasks), "scored_at"]
        if old != entry.segments[: len(old)]:
            index, old = None, ()
        fresh = self._reader.read(entry.segments[len(old) :], names)
        parts = [index.columns, fresh] if index else [fresh]
        ids = np.concatenate([part["example_id"] for part in parts])
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        twice = ids[1:][ids[1:] == ids[:-1]]
        if twice.size:
            raise IntegrityError(
                f"example {int(twice[0])} has two labels of version {entry.version!r} ({twice.size} such examples)",
                where=str(self.path),
                fix="capture the version again into a new store",
            )
        columns = {name: np.concatenate([part[name] for part in parts])[order] for name in names[1:]}
        index = _Index(entry.segments, {"example_id": ids, **columns})
        self._indexes[entry.version] = index
        return index
