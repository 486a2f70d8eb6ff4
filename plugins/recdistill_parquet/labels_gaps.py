"""Where a dataset has no labels: stretches of time and days with missing coverage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import UsageError
from recdistill_core.label_choice import unlabelled
from recdistill_core.labels import LogitStore

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Gap:
    """Consecutive rows, in the order of time, none of which has a label.

    Attributes:
        first, last: their first and last event, ms since the epoch, UTC.
        rows: how many.
    """

    first: int
    last: int
    rows: int


@dataclass(frozen=True)
class Day:
    """A day in UTC, such as ``2022-04-08``: its rows, and how many of them have no label."""

    day: str
    rows: int
    missing: int


@dataclass(frozen=True)
class Gaps:
    """What is missing of a dataset's labels.

    Attributes:
        rows, missing: of the whole dataset. gaps: by time. days: those with a row that has no label.
    """

    rows: int
    missing: int
    gaps: tuple[Gap, ...]
    days: tuple[Day, ...]

    @property
    def coverage(self) -> float:
        """Share of the rows that have a label; 1 where there are no rows."""
        return 1 - self.missing / self.rows if self.rows else 1.0


def find_gaps(
    store: LogitStore,
    versions: Sequence[str],
    example_id: NDArray[np.int64],
    event_time: NDArray[np.int64],
    min_rows: int = 1,
) -> Gaps:
    """Rows that have a visible label of all its tasks in none of ``versions``.

    Args:
        store: any logit store. versions: any of them will do.
        example_id, event_time: ``[N]`` of the dataset, in any order; times in ms since the epoch, UTC.
        min_rows: least rows of a stretch that is listed.

    Raises:
        UsageError: without a version. DataError: if the store has no such version.
    """
    if not versions:
        raise UsageError("gaps need at least one teacher version", fix="name the versions that count")
    return describe(unlabelled(store, versions, example_id), event_time, min_rows)


def describe(missing: NDArray[np.bool_], event_time: NDArray[np.int64], min_rows: int = 1) -> Gaps:
    """The stretches of time and the days of the rows ``missing [N]``, whose events are at ``event_time [N]``."""
    order = np.argsort(event_time, kind="stable")
    gaps = _runs(event_time[order], missing[order], min_rows)
    return Gaps(int(missing.size), int(missing.sum()), gaps, _days(event_time, missing))


def _runs(time: NDArray[np.int64], missing: NDArray[np.bool_], min_rows: int) -> tuple[Gap, ...]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], missing, [False])).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    long = stops - starts >= min_rows
    pairs = zip(starts[long].tolist(), stops[long].tolist(), strict=True)
    return tuple(Gap(int(time[start]), int(time[stop - 1]), stop - start) for start, stop in pairs)


def _days(time: NDArray[np.int64], missing: NDArray[np.bool_]) -> tuple[Day, ...]:
    days, place = np.unique(time // DAY_MS, return_inverse=True)
    rows, without = np.bincount(place), np.bincount(place, weights=missing).astype(np.int64)
    names = days.astype("datetime64[D]").astype(str) if days.size else days.astype(str)
    found = zip(names.tolist(), rows.tolist(), without.tolist(), strict=True)
    return tuple(Day(name, count, gone) for name, count, gone in found if gone)
