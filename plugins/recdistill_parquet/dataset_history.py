"""One pass over the sorted events: event parts out, and for every impression what lies STRICTLY before it.

The pass carries a few numbers from batch to batch, so that a user's events may span batches and parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recdistill_core.rawlog import HistoryRate
from recdistill_parquet.dataset_format import NOT_SHOWN
from recdistill_parquet.dataset_parts import PartWriter
from recdistill_parquet.dataset_plan import Plan


@dataclass(frozen=True)
class HistoryFiles:
    """What the pass wrote.

    Attributes:
        prefix: per impression ``seq``, ``history_start`` (place of the user's first event in the event table),
            ``history_end`` (events strictly before the impression) and the rates ``h<i>``.
        spans: per user ``usr``, ``event_start``, ``event_count``.
        events: number of events.
        rows_of: event part -> rows.
    """

    prefix: Path
    spans: Path
    events: int
    rows_of: dict[str, int]


def write_events(
    batches: Iterable[pa.RecordBatch], plan: Plan, folder: Path, staging: Path, part_rows: int
) -> HistoryFiles:
    """Write the event parts and the staged prefixes.

    Args:
        batches: events in order, with columns ``usr, time, action, f<i>, extra, seq``.
        plan: names of the event fields and the history rates.
        folder: directory of the event parts. staging: directory of the staged files.
        part_rows: rows of an event part.
    """
    names = [entry.name for entry in plan.schema.events]
    kinds = {**dict.fromkeys(names, np.int32), "action": np.int32, "time": np.int64}
    writer = PartWriter(folder, kinds, part_rows)
    rates = plan.raw.history_rates
    actions = list(plan.raw.actions)
    prefix = _Prefix([actions.index(rate.action) if rate.action else None for rate in rates])
    prefix_file, spans_file = _Stream(staging / "prefix.parquet"), _Stream(staging / "spans.parquet")
    for batch in batches:
        columns = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in batch.schema.names}
        fields = {name: columns[f"f{place}"] for place, name in enumerate(names)}
        written = {**fields, "action": columns["action"], "time": columns["time"]}
        happened = columns["action"] != NOT_SHOWN
        writer.append({name: column[happened] for name, column in written.items()})
        spans_file.write(prefix.finished_users(columns["usr"], happened))
        start, end, counts = prefix.advance(columns["usr"], columns["time"], columns["action"])
        shown = columns["extra"] == 0
        found = {"seq": columns["seq"][shown], "history_start": start[shown], "history_end": end[shown]}
        for number, (rate, count) in enumerate(zip(rates, counts, strict=True)):
            found[f"h{number}"] = smoothed(rate, count[shown], end[shown])
        prefix_file.write(found)
    spans_file.write(prefix.last_user())
    writer.close()
    return HistoryFiles(prefix_file.close(), spans_file.close(), writer.rows, writer.rows_of)


def smoothed(rate: HistoryRate, hits: NDArray[np.int64], past: NDArray[np.int64]) -> NDArray[np.float32]:
    """A history rate from ``hits [N]`` of ``past [N]`` earlier events; ``log(1 + past)`` for a rate without action."""
    if not rate.action:
        return np.log1p(past).astype(np.float32)
    found = (hits + rate.prior_count * rate.prior_rate) / (past + rate.prior_count)
    return found.astype(np.float32)


class _Prefix:
    """Running place, user start and group start over rows sorted by (user, time); a group shares user and time.

    A place is the number of events before a row: a row that was not shown is none and takes none.

    Args:
        bits: per history rate the action bit to count, or None.
    """

    def __init__(self, bits: list[int | None]) -> None:
        self.bits = bits
        self.place = 0
        self.user: int | None = None
        self.time: int | None = None
        self.user_start = 0
        self.group_start = 0
        # Running totals per rate: up to here, at the start of the user, at the start of the group.
        self.total = [0] * len(bits)
        self.at_user = [0] * len(bits)
        self.at_group = [0] * len(bits)

    def finished_users(self, user: NDArray[np.int64], happened: NDArray[np.bool_]) -> dict[str, NDArray[np.int64]]:
        """``usr, event_start, event_count`` of the users that ended before or in these events."""
        first = np.flatnonzero(np.diff(user, prepend=-1 if self.user is None else self.user))
        starts = self._places(happened)[first]
        if self.user is None:
            begun, who = starts, user[first]
        else:
            begun, who = np.concatenate(([self.user_start], starts)), np.concatenate(([self.user], user[first]))
        return {"usr": who[:-1], "event_start": begun[:-1], "event_count": np.diff(begun)}

    def _places(self, happened: NDArray[np.bool_]) -> NDArray[np.int64]:
        before: NDArray[np.int64] = np.cumsum(happened, dtype=np.int64) - happened + self.place
        return before

    def last_user(self) -> dict[str, NDArray[np.int64]]:
        """The span of the user that the stream ended with."""
        span = {"usr": self.user, "event_start": self.user_start, "event_count": self.place - self.user_start}
        return {name: np.array([value], np.int64) for name, value in span.items()}

    def advance(
        self, user: NDArray[np.int64], time: NDArray[np.int64], action: NDArray[np.int32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], list[NDArray[np.int64]]]:
        """``(user start, events strictly before, hits strictly before per rate)``, each ``[rows]``."""
        happened = action != NOT_SHOWN
        new_user = np.diff(user, prepend=-1 if self.user is None else self.user) != 0
        new_group = new_user | (np.diff(time, prepend=time[0] if self.time is None else self.time) != 0)
        place = self._places(happened)
        user_start = _fill(place, new_user, self.user_start)
        group_start = _fill(place, new_group, self.group_start)
        counts = []
        for number, bit in enumerate(self.bits):
            hits = np.zeros(len(user), np.int64) if bit is None else ((action >> bit & 1) * happened).astype(np.int64)
            before = np.cumsum(hits) - hits + self.total[number]
            at_user = _fill(before, new_user, self.at_user[number])
            at_group = _fill(before, new_group, self.at_group[number])
            counts.append(at_group - at_user)
            self.total[number] = int(before[-1] + hits[-1])
            self.at_user[number], self.at_group[number] = int(at_user[-1]), int(at_group[-1])
        self.place += int(happened.sum())
        self.user, self.time = int(user[-1]), int(time[-1])
        self.user_start, self.group_start = int(user_start[-1]), int(group_start[-1])
        return user_start, group_start - user_start, counts


def _fill(values: NDArray[np.int64], mark: NDArray[np.bool_], carried: int) -> NDArray[np.int64]:
    """Per place, the value at the latest mark at or before it; ``carried`` where there is none yet."""
    latest = np.maximum.accumulate(np.where(mark, np.arange(len(values)), -1))
    return np.where(latest >= 0, values[latest], carried)


class _Stream:
    """A staged Parquet file that grows by columns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: pq.ParquetWriter | None = None

    def write(self, columns: dict[str, NDArray[Any]]) -> None:
        """Append columns of equal length."""
        batch = pa.RecordBatch.from_pydict(columns)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, batch.schema, compression="lz4", write_statistics=False)
        if batch.num_rows:
            self._writer.write_batch(batch)

    def close(self) -> Path:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
        return self.path
