"""The streaming pass: record batches in, checked columns out to a staging Parquet file. Memory holds a few batches.

Staged columns: ``seq`` (number in the stream), ``usr``, ``time``, ``action``, ``c<i>`` per lookup; for impressions also
``example_id``, ``request``, ``n<i>``, ``l<i>``, ``t<i>``, ``position``, ``propensity``. Raw names go no further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recdistill_core.errors import DataError
from recdistill_core.rawlog import RawLog
from recdistill_parquet.dataset_checks import Rows
from recdistill_parquet.dataset_format import NOT_SHOWN
from recdistill_parquet.dataset_plan import Plan

#: Rows that are checked, and staged as one row group, at once.
CHUNK = 65_536
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Staged:
    """A staged table.

    Attributes:
        path: the Parquet file. rows: number of rows. kinds: staged column -> Arrow type.
    """

    path: Path
    rows: int
    kinds: Mapping[str, pa.DataType]


def stage_impressions(raw: RawLog, plan: Plan, path: Path, progress: Progress | None) -> Staged:
    """Check and stage all impressions.

    Raises:
        DataError: naming the first bad row; or for an empty log, or a task with one class only.
    """
    seen = {task: np.zeros(2, np.int64) for task in raw.schema.tasks}
    newest = None
    staging = _Staging(path)
    for batch in _slices(raw.impressions(), raw.origin):
        rows = Rows(batch, staging.rows, raw.locate)
        if staging.rows == 0:
            rows.require(plan.impression_columns())
        columns = _impression_columns(rows, plan) | _shared_columns(rows, plan, range(len(plan.lookups)))
        columns["action"][~rows.shown(raw.schema)] = NOT_SHOWN
        if raw.schema.shown:
            columns["shown"] = rows.shown(raw.schema).astype(np.int8)
        if raw.schema.time_ordered:
            newest = _check_order(rows, columns["time"], newest, raw.schema.event_time)
        for number, task in enumerate(raw.schema.tasks):
            seen[task] += np.bincount(columns[f"l{number}"] + 1, minlength=3)[1:]
        staging.write(columns)
        if progress is not None:
            progress(staging.rows, raw.total)
    staged = staging.close()
    if staged.rows == 0:
        raise DataError(
            "the log has no impressions", where=raw.origin, fix="check the path and what the importer drops"
        )
    _check_classes(seen, raw.origin)
    return staged


def stage_events(raw: RawLog, plan: Plan, path: Path) -> Staged | None:
    """Check and stage the extra history events, or None where there are none."""
    if raw.events is None:
        return None
    if not raw.schema.actions:
        fix = "name the outcome columns under `actions`, or give no events"
        raise DataError("the log has extra events, and its schema has no actions", where=raw.origin, fix=fix)
    staging = _Staging(path)
    for batch in _slices(raw.events(), f"events of {raw.origin}"):
        rows = Rows(batch, staging.rows, lambda row: f"events of {raw.origin}, row {row + 1}")
        if staging.rows == 0:
            rows.require(plan.event_columns())
        staging.write(_shared_columns(rows, plan, plan.events))
    staged = staging.close()
    return staged if staged.rows else None


class _Staging:
    """One Parquet file, one row group per write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._schema: pa.Schema | None = None

    def write(self, columns: Mapping[str, Any]) -> None:
        """Append columns of equal length."""
        arrays = {"seq": np.arange(self.rows, self.rows + len(columns["time"])), **columns}
        batch = pa.RecordBatch.from_pydict(arrays)
        if self._writer is None:
            self._schema = batch.schema
            self._writer = pq.ParquetWriter(self.path, batch.schema, compression="lz4", write_statistics=False)
        self._writer.write_batch(batch)
        self.rows += batch.num_rows

    def close(self) -> Staged:
        """Finish the file."""
        if self._writer is None or self._schema is None:
            return Staged(self.path, 0, {})
        self._writer.close()
        return Staged(self.path, self.rows, {entry.name: entry.type for entry in self._schema})


def _slices(batches: Iterator[Any], origin: str) -> Iterator[pa.RecordBatch]:
    """The same rows in record batches of about ``CHUNK`` rows; small ones are joined, large ones are cut."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    schema = None
    for batch in batches:
        schema = schema or batch.schema
        if not batch.schema.equals(schema):
            differ = [entry.name for entry in batch.schema if entry not in list(schema)] or ["(columns are missing)"]
            fix = "an importer must hand out batches of equal schema"
            raise DataError(f"record batches differ in {', '.join(differ)}", where=origin, fix=fix)
        waiting.append(batch)
        count += batch.num_rows
        if count >= CHUNK:
            yield from _joined(waiting)
            waiting, count = [], 0
    if count:
        yield from _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    table = pa.Table.from_batches(batches)
    for start in range(0, table.num_rows, CHUNK):
        yield from table.slice(start, CHUNK).combine_chunks().to_batches()


def _shared_columns(rows: Rows, plan: Plan, lookups: Any) -> dict[str, Any]:
    """What impressions and extra events have in common."""
    raw = plan.raw
    rows.refuse_null(raw.user_id, "user_id")
    rows.refuse_null(raw.item_id, "item_id")
    columns: dict[str, Any] = {"usr": rows.keys(raw.user_id), "time": rows.times(raw.event_time, raw.time_unit)}
    columns |= {f"c{index}": rows.keys(plan.lookups[index].column) for index in lookups}
    action = np.zeros(rows.batch.num_rows, np.int32)
    for bit, (name, column) in enumerate(raw.actions.items()):
        action |= rows.bits(column, name) << bit
    columns["action"] = action
    return columns


def _impression_columns(rows: Rows, plan: Plan) -> dict[str, Any]:
    raw = plan.raw
    columns: dict[str, Any] = {}
    count = rows.batch.num_rows
    numbers = np.arange(rows.first, rows.first + count)
    columns["example_id"] = rows.integers(raw.example_id, "example_id") if raw.example_id else numbers
    if raw.request_id:
        rows.refuse_null(raw.request_id, "request_id")
        columns["request"] = rows.keys(raw.request_id)
    columns |= {f"n{number}": rows.feature(entry) for number, entry in enumerate(raw.numeric)}
    columns |= {f"l{number}": rows.labels(column, task) for number, (task, column) in enumerate(raw.tasks.items())}
    columns |= {f"t{number}": rows.truths(column, task) for number, (task, column) in enumerate(raw.truth.items())}
    if raw.position:
        columns["position"] = rows.positions(raw.position, rows.shown(raw))
    if raw.propensity:
        columns["propensity"] = rows.propensities(raw.propensity, rows.shown(raw))
    return columns


def _check_order(rows: Rows, time: NDArray[np.int64], newest: int | None, column: str) -> int:
    before = np.concatenate(([time[0] if newest is None else newest], time[:-1]))
    fix = "sort the log by time, or set `time_ordered: false` and let the import sort it"
    rows.refuse(time < before, "event_time {value} is earlier than that of the row before", column, fix)
    return int(time[-1])


def _check_classes(seen: Mapping[str, NDArray[np.int64]], origin: str) -> None:
    for task, (negative, positive) in seen.items():
        if negative and positive:
            continue
        found = "no observed label" if not (negative or positive) else f"only label {int(positive > 0)}"
        raise DataError(
            f"task {task!r} has {found} in {int(negative + positive)} observed rows",
            where=origin,
            fix="a task needs both classes: import a longer log, check the label column, or remove the task",
        )
