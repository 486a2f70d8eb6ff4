"""Find or import a run's dataset, and turn the split's times into row ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from recdistill_core.component import BuildContext
from recdistill_core.config import Resolved
from recdistill_core.errors import DataError, UsageError
from recdistill_core.interfaces import SampleSource
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_writer import write_dataset
from recdistill_pipeline.runconfig import SplitConfig

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Split:
    """Row ranges ``[first, last + 1)``: the teacher's and the students' training rows, and the test rows.

    ``stream`` is the first row of the stream phase, the end of the training rows where there is none.
    """

    teacher: tuple[int, int]
    student: tuple[int, int]
    test: tuple[int, int]
    stream: int


def import_dataset(importer: Resolved, out: Path, memory_limit: str, progress: Progress | None = None) -> None:
    """Read somebody's log through an importer and write a dataset."""
    raw = importer.build(BuildContext()).open()
    write_dataset(raw, out, memory_limit=memory_limit, progress=progress)


def open_dataset(path: Path) -> ParquetSource:
    """Open an imported dataset."""
    return ParquetSource(path)


def make_split(source: SampleSource, config: SplitConfig) -> Split:
    """Row ranges of a split.

    Raises:
        UsageError: for a bound that is no time and no share. DataError: for an empty range.
    """
    start = row_of(source, config.train_from, "split.train_from", 0)
    test_from = row_of(source, config.test_from, "split.test_from", source.num_rows)
    test_until = row_of(source, config.test_until, "split.test_until", source.num_rows)
    student = row_of(source, config.student_from, "split.student_from", start)
    stream = row_of(source, config.stream_from, "split.stream_from", test_from)
    split = Split((start, test_from), (student, test_from), (test_from, test_until), min(stream, test_from))
    for name, (first, last) in (("teacher", split.teacher), ("student", split.student), ("test", split.test)):
        if last <= first:
            raise DataError(
                f"the split leaves no {name} rows",
                where=f"train_from={config.train_from!r}, student_from={config.student_from!r}, "
                f"test_from={config.test_from!r}, test_until={config.test_until!r}; the log runs from "
                f"{_iso(source, 0)} to {_iso(source, source.num_rows - 1)}",
                fix="move the bounds inside the log's time range",
            )
    return split


def require_both_classes(source: SampleSource, rows: tuple[int, int], task: str) -> None:
    """Raise DataError unless the observed labels of ``rows`` hold both classes; found before step 0, not after it."""
    label = source.column(f"label_{task}")[rows[0] : rows[1]]
    found = np.unique(label[~np.isnan(label)])
    if len(found) < 2:
        raise DataError(
            f"the test rows hold {'only one class of' if len(found) else 'no'} labels of task {task!r}",
            where=f"rows {rows[0]} to {rows[1]}",
            fix="move split.test_from so that the test rows hold both classes",
        )


def row_of(source: SampleSource, bound: str, name: str, default: int) -> int:
    """First row at or after a bound: an ISO date or time (UTC), ms since the epoch, or a share such as ``80%``.

    Args:
        source: the dataset. bound: empty for ``default``. name: of the setting, for messages.

    Raises:
        UsageError: if it is none of these.
    """
    return source.row_at(time_of(source, bound, name)) if bound.strip() else default


def time_of(source: SampleSource, bound: str, name: str) -> int:
    """The time of a bound, ms UTC: as it says, or for a share such as ``80%`` that of the first row after it.

    Args:
        source: the dataset. bound: an ISO date or time (UTC), ms since the epoch, or a share. name: as above.

    Raises:
        UsageError: if it is none of these.
    """
    text = bound.strip()
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100.0
            if not 0.0 <= share <= 1.0:
                raise ValueError
            times = source.column("event_time")
            place = int(share * source.num_rows)
            # rows of one moment stay on one side of the bound
            return int(times[place]) if place < source.num_rows else int(times.max(initial=-1)) + 1
        if text.isdigit() and len(text) > 8:
            return int(text)
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"{bound!r} is no time and no share of the rows",
            where=name,
            fix="write an ISO date or time (2022-05-04, 2022-05-04T12:00:00+08:00), ms since the epoch, or '80%'",
        ) from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def _iso(source: SampleSource, row: int) -> str:
    return datetime.fromtimestamp(int(source.column("event_time")[row]) / 1000, UTC).isoformat(timespec="seconds")
