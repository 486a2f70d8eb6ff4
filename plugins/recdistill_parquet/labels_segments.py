"""Segment files of a label store: immutable Parquet, verified against the manifest before the first read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recdistill_core.errors import IntegrityError
from recdistill_core.fingerprint import file_sha256
from recdistill_parquet.labels_manifest import SEGMENTS, Segment, VersionEntry

Columns = dict[str, NDArray[Any]]


def logit_column(task: str) -> str:
    """Name of the column that holds the raw logits of ``task``."""
    return f"logit_{task}"


def write_segment(
    store: Path, entry: VersionEntry, number: int, columns: Mapping[str, NDArray[Any]], taken: Set[str]
) -> Segment:
    """Write one segment durably under a name that nobody has; nothing refers to it yet.

    Args:
        store: root of the store.
        entry: the version; its name, mode and view go into the Parquet metadata.
        number: first number to try in the file's name.
        columns: ``example_id``, ``step``, ``scored_at`` ``[N]`` int64 and ``logit_<task>`` ``[N]`` float32.
        taken: names that the manifest already lists.
    """
    metadata = {"version": entry.version, "mode": entry.mode.value, "view": entry.view}
    table = pa.table(dict(columns)).replace_schema_metadata({f"recdistill.{key}": v for key, v in metadata.items()})
    while True:
        path = store / SEGMENTS / f"{entry.version}-{number:06d}.parquet"
        number += 1
        if path.name in taken:
            continue
        try:
            stream = path.open("xb")  # exclusive: a name left by a crash or held by another writer is passed over
        except FileExistsError:
            continue
        break
    try:
        with stream:
            pq.write_table(
                table,
                stream,
                compression="zstd",
                use_dictionary=["step", "scored_at"],
                write_page_checksum=True,
            )
            stream.flush()
            os.fsync(stream.fileno())
        return Segment(path.name, file_sha256(path), table.num_rows, path.stat().st_size)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


class SegmentReader:
    """Reads columns of committed segments and remembers which files it has verified."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self._verified: set[Segment] = set()

    def read(self, segments: Sequence[Segment], columns: Sequence[str]) -> Columns:
        """``{column: [rows of all segments]}`` in the order of ``segments``.

        Raises:
            IntegrityError: if a file is missing, torn, altered, or lacks a column.
        """
        parts = [self._read_one(segment, columns) for segment in segments]
        kinds = {name: np.float32 if name.startswith("logit_") else np.int64 for name in columns}
        return {name: np.concatenate([np.empty(0, kinds[name]), *(part[name] for part in parts)]) for name in columns}

    def _read_one(self, segment: Segment, columns: Sequence[str]) -> Columns:
        path = self.store / SEGMENTS / segment.file
        if segment not in self._verified:
            self._verify(segment, path)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read(columns=list(columns))
            if table.num_rows != segment.rows:
                raise ValueError(f"it has {table.num_rows} rows, the manifest says {segment.rows}")
            return {name: table[name].to_numpy() for name in columns}
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise _broken(f"cannot be read: {error}", path) from error

    def _verify(self, segment: Segment, path: Path) -> None:
        if not path.is_file():
            raise _broken("is missing", path)
        size = path.stat().st_size
        if size != segment.bytes:
            raise _broken(f"has {size} bytes, the manifest says {segment.bytes}", path)
        if file_sha256(path) != segment.sha256:
            raise _broken("does not match its sha256 in the manifest: its bytes were altered", path)
        self._verified.add(segment)


def _broken(what: str, path: Path) -> IntegrityError:
    fix = "restore the file from a backup, or capture the version again into a new store"
    return IntegrityError(f"a committed segment of the label store {what}", where=str(path), fix=fix)
