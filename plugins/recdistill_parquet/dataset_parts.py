"""Tables in parts: Arrow IPC files of one record batch each, memory-mapped, read by row position.

Every part but the last has exactly ``part_rows`` rows, so that row ``r`` lies in part ``r // part_rows``. Files are
uncompressed; a column is a numpy view of the file and costs no memory until it is read.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recdistill_core.errors import IntegrityError

Columns = Mapping[str, NDArray[Any]]


class PartWriter:
    """Collects columns and writes them in parts.

    Args:
        folder: directory of the parts; made if need be.
        schema: name -> numpy dtype of a column, or ``(dtype, width)`` for a matrix column ``[rows, width]``.
        part_rows: rows of a part.
    """

    def __init__(self, folder: Path, schema: Mapping[str, Any], part_rows: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.part_rows = part_rows
        self.rows_of: dict[str, int] = {}
        self.rows = 0
        self._shapes = {name: kind if isinstance(kind, tuple) else (kind, None) for name, kind in schema.items()}
        self._buffer = {
            name: np.empty(part_rows if width is None else (part_rows, width), dtype)
            for name, (dtype, width) in self._shapes.items()
        }
        self._filled = 0

    def append(self, columns: Columns) -> None:
        """Add rows: every column of the schema, ``[rows]`` or ``[rows, width]``."""
        total = len(next(iter(columns.values())))
        start = 0
        while start < total:
            count = min(total - start, self.part_rows - self._filled)
            for name, buffer in self._buffer.items():
                buffer[self._filled : self._filled + count] = columns[name][start : start + count]
            self._filled += count
            start += count
            if self._filled == self.part_rows:
                self._flush()

    def close(self) -> None:
        """Write the rows of the last part; a table without rows has one empty part."""
        if self._filled or not self.rows_of:
            self._flush()

    def _flush(self) -> None:
        arrays = {name: _to_arrow(buffer[: self._filled]) for name, buffer in self._buffer.items()}
        batch = pa.RecordBatch.from_pydict(arrays)
        path = self.folder / f"part-{len(self.rows_of):05d}.arrow"
        write_batches(path, [batch])
        self.rows_of[f"{self.folder.name}/{path.name}"] = self._filled
        self.rows += self._filled
        self._filled = 0


def _to_arrow(column: NDArray[Any]) -> pa.Array:
    if column.ndim == 1:
        return pa.array(column)
    values = pa.array(np.ascontiguousarray(column).reshape(-1))
    width = column.shape[1]
    kind = pa.list_(values.type, width)
    return pa.Array.from_buffers(kind, len(column), [None], children=[values])


def write_batches(path: Path, batches: Sequence[pa.RecordBatch]) -> None:
    """One Arrow IPC file of these record batches."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


class PartReader:
    """Reads a table in parts by row position.

    Args:
        folder: directory of the parts.
        rows: number of rows.
        part_rows: rows of every part but the last.

    Raises:
        IntegrityError: naming the part that cannot be opened.
    """

    def __init__(self, folder: Path, rows: int, part_rows: int) -> None:
        count = max(1, -(-rows // part_rows))
        self.rows = rows
        self.part_rows = part_rows
        self._parts = [_open(folder / f"part-{number:05d}.arrow") for number in range(count)]
        self.names = tuple(self._parts[0])
        found = sum(len(next(iter(part.values()))) for part in self._parts)
        if found != rows:
            raise IntegrityError(
                f"the parts hold {found} rows, the manifest says {rows}", where=str(folder), fix="import the log again"
            )

    def column(self, name: str, place: int | None = None) -> NDArray[Any]:
        """One whole column, or column ``place`` of a matrix column; a read-only view where there is one part."""
        pieces = [part[name] if place is None else part[name][:, place] for part in self._parts]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def first_at_or_after(self, name: str, value: int) -> int:
        """Position of the first row whose (ascending) column is at least ``value``; the number of rows if none is."""
        size = self.part_rows
        return bisect.bisect_left(range(self.rows), value, key=lambda row: self._parts[row // size][name][row % size])

    def take(self, rows: NDArray[np.int64], names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The columns ``names`` at ``rows [N]``, in that order: ``[N]``, or ``[N, width]`` for a matrix column."""
        if len(self._parts) == 1:
            return {name: self._parts[0][name][rows] for name in names}
        numbers = rows // self.part_rows
        touched = np.unique(numbers)
        if len(touched) == 1:
            part = self._parts[int(touched[0])]
            local = rows - touched[0] * self.part_rows
            return {name: part[name][local] for name in names}
        found = {name: self._empty(name, len(rows)) for name in names}
        for number in touched:
            where = np.flatnonzero(numbers == number)
            local = rows[where] - number * self.part_rows
            for name in names:
                found[name][where] = self._parts[int(number)][name][local]
        return found

    def take_ranges(
        self, starts: NDArray[np.int64], lengths: NDArray[np.int64], names: Sequence[str]
    ) -> dict[str, NDArray[np.int64]]:
        """Rows ``[starts[i], starts[i] + lengths[i])`` of every range ``i [U]``, end to end, as int64 columns."""
        number, source, target, count = self._segments(starts, lengths)
        total = int(lengths.sum())
        found = {name: np.empty(total, np.int64) for name in names}
        for part in np.unique(number):
            chosen = np.flatnonzero(number == part)
            rows = expand(source[chosen] - part * self.part_rows, count[chosen])
            together = bool((np.diff(chosen) == 1).all())
            first = int(target[chosen[0]])
            where: Any = slice(first, first + len(rows)) if together else expand(target[chosen], count[chosen])
            for name in names:
                found[name][where] = self._parts[int(part)][name][rows]
        return found

    def _segments(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Ranges cut at part boundaries: ``(part, first row, place in the output, rows)`` of each piece."""
        keep = lengths > 0
        starts, lengths, places = starts[keep], lengths[keep], (np.cumsum(lengths) - lengths)[keep]
        first, last = starts // self.part_rows, (starts + lengths - 1) // self.part_rows
        pieces = last - first + 1
        if len(pieces) == 0 or int(pieces.max()) == 1:
            return first, starts, places, lengths
        number = expand(first, pieces)
        start, end = np.repeat(starts, pieces), np.repeat(starts + lengths, pieces)
        source = np.maximum(start, number * self.part_rows)
        count = np.minimum(end, (number + 1) * self.part_rows) - source
        return number, source, np.repeat(places, pieces) + source - start, count

    def _empty(self, name: str, rows: int) -> NDArray[Any]:
        like = self._parts[0][name]
        return np.empty((rows, *like.shape[1:]), like.dtype)


def expand(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """``starts[i], starts[i] + 1, ...`` (``lengths[i]`` of them) for every ``i``, end to end."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total, dtype=np.int64)


def _open(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with pa.memory_map(str(path)) as source:  # closes the file; the mapping lives as long as its arrays
            batch = pa.ipc.open_file(source).get_batch(0)
    except (pa.ArrowInvalid, OSError) as error:
        raise IntegrityError(
            f"a part of the dataset cannot be opened: {error}", where=str(path), fix="import the log again"
        ) from error
    return {name: _to_numpy(batch.column(name)) for name in batch.schema.names}


def _to_numpy(column: pa.Array) -> NDArray[Any]:
    if not pa.types.is_fixed_size_list(column.type):
        plain: NDArray[Any] = column.to_numpy(zero_copy_only=True)
        return plain
    values: NDArray[Any] = column.values.to_numpy(zero_copy_only=True)
    return values.reshape(len(column), column.type.list_size)
