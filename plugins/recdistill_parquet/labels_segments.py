"""Segment files of a label store: immutable Parquet, every read compared with the sha256 that the log names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recdistill_core.errors import IntegrityError
from recdistill_core.files import sync
from recdistill_parquet.labels_state import Segment, VersionEntry

SEGMENTS, QUARANTINE = "segments", "quarantine"
Columns = dict[str, NDArray[Any]]


def logit_column(task: str) -> str:
    """Name of the column that holds the raw logits of ``task``."""
    return f"logit_{task}"


def select(columns: Columns, rows: NDArray[np.bool_]) -> Columns:
    """The rows where ``rows [N]`` is True."""
    return columns if rows.all() else {name: column[rows] for name, column in columns.items()}


def concatenate(parts: Sequence[Columns]) -> Columns:
    """Rows of all parts, in order."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def write_segment(
    store: Path, entry: VersionEntry, number: int, columns: Mapping[str, NDArray[Any]], taken: Set[str]
) -> Segment:
    """Write one segment durably under a name that nobody has; nothing refers to it yet.

    Args:
        store: root of the store.
        entry: the version; its name, mode and view go into the Parquet metadata.
        number: first number to try in the file's name.
        columns: ``example_id``, ``step``, ``scored_at`` ``[N]`` int64 and ``logit_<task>`` ``[N]`` float32, N > 0.
        taken: names that the store already lists.
    """
    return _write(store / SEGMENTS, entry, number, columns, taken)


def write_aside(store: Path, entry: VersionEntry, columns: Mapping[str, NDArray[Any]]) -> Segment:
    """Write what was set aside, with the column ``reason``, to a file under ``quarantine/``."""
    folder = store / QUARANTINE
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        sync(store)
    return _write(folder, entry, 0, columns, frozenset())


def remove_segment(store: Path, segment: Segment, folder: str = SEGMENTS) -> None:
    """Remove a file that was not committed."""
    (store / folder / segment.file).unlink(missing_ok=True)


def _write(
    folder: Path, entry: VersionEntry, number: int, columns: Mapping[str, NDArray[Any]], taken: Set[str]
) -> Segment:
    content = _parquet(entry, columns)
    while True:
        path = folder / f"{entry.version}-{number:06d}.parquet"
        number += 1
        if path.name in taken:
            continue
        try:  # exclusive: a name left by a crash or held by another writer is passed over, and so is a link
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            continue
        break
    try:
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    ids, at = columns["example_id"], columns["scored_at"]
    bounds = int(ids.min()), int(ids.max()), int(at.min()), int(at.max())
    return Segment(path.name, hashlib.sha256(content).hexdigest(), ids.size, len(memoryview(content)), *bounds)


def _parquet(entry: VersionEntry, columns: Mapping[str, NDArray[Any]]) -> pa.Buffer:
    """The bytes of a segment: 7 to 12 for a label, as ids and logits have few bits that repeat."""
    metadata = {"version": entry.version, "mode": entry.mode.value, "view": entry.view}
    table = pa.table(dict(columns)).replace_schema_metadata({f"recdistill.{key}": v for key, v in metadata.items()})
    encoding = {name: "BYTE_STREAM_SPLIT" for name in columns if name.startswith("logit_")}
    encoding |= dict.fromkeys(("example_id", "step", "scored_at"), "DELTA_BINARY_PACKED")
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression={name: "none" if name == "example_id" else "zstd" for name in columns},  # ids are packed already
        use_dictionary=["reason"] if "reason" in columns else False,
        column_encoding=encoding,
        write_page_checksum=True,
    )
    return sink.getvalue()


class SegmentReader:
    """Reads columns of committed segments."""

    def __init__(self, store: Path, folder: str = SEGMENTS) -> None:
        self.folder = store / folder

    def read(self, segments: Sequence[Segment], columns: Sequence[str]) -> Columns:
        """``{column: [rows of all segments]}`` in the order of ``segments``.

        Raises:
            IntegrityError: if a file is missing, torn, altered, or lacks a column.
        """
        parts = [self._read_one(segment, columns) for segment in segments]
        kinds = {name: np.float32 if name.startswith("logit_") else np.int64 for name in columns}
        return {name: np.concatenate([np.empty(0, kinds[name]), *(part[name] for part in parts)]) for name in columns}

    def _read_one(self, segment: Segment, columns: Sequence[str]) -> Columns:
        path = self.folder / segment.file
        content = self.content(segment)
        try:
            table = pq.read_table(pa.BufferReader(content), columns=list(columns), page_checksum_verification=True)
            if table.num_rows != segment.rows:
                raise ValueError(f"it has {table.num_rows} rows, the log says {segment.rows}")
            return {name: table[name].to_numpy() for name in columns}
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise _broken(f"cannot be read: {error}", path) from error

    def content(self, segment: Segment) -> bytes:
        """The bytes of a segment, compared with its size and sha256: what is parsed is what was compared.

        Raises:
            IntegrityError: if the file is missing, a symbolic link, torn or altered.
        """
        path = self.folder / segment.file
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(handle, "rb") as stream:
                content = stream.read()
        except FileNotFoundError:
            raise _broken("is missing", path) from None
        except OSError as error:
            if path.is_symlink():
                raise _broken("is a symbolic link; the store makes none", path) from error
            raise _broken(f"cannot be read: {error}", path) from error
        if len(content) != segment.bytes:
            raise _broken(f"has {len(content)} bytes, the log says {segment.bytes}", path)
        if hashlib.sha256(content).hexdigest() != segment.sha256:
            raise _broken("does not match its sha256 in the log: its bytes were altered", path)
        return content


def _broken(what: str, path: Path) -> IntegrityError:
    fix = "restore the file from a backup, or capture the version again into a new store"
    return IntegrityError(f"a committed segment of the label store {what}", where=str(path), fix=fix)
