"""The order in which training rows are read, and the schedule of batch and stream phase."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recdistill_core.errors import DataError, UsageError
from recdistill_core.schema import Schema
from recdistill_lightning.data import Phases, RowSampler
from recdistill_lightning.order import WITHIN, ReadOrder, row_batches, windows

HOUR = 3_600_000
SCHEMA = Schema(tasks=("click",))


@dataclass
class Log:
    """The two columns that an order looks at."""

    event_time: NDArray[np.int64]
    user_id: NDArray[np.int64]
    request_id: NDArray[np.int64]
    schema: Schema = SCHEMA
    snapshot_id: str = "log"
    num_rows: int = 0

    def __post_init__(self) -> None:
        self.num_rows = len(self.event_time)

    def column(self, name: str) -> NDArray[Any]:
        found: NDArray[Any] = getattr(self, name)
        return found

    def row_at(self, time_ms: int) -> int:
        return int(np.searchsorted(self.event_time, time_ms))

    def batch(self, rows: Any, history: Any = None) -> Any:
        raise NotImplementedError

    def truth(self, task: str) -> None:
        return None


@st.composite
def logs(draw: st.DrawFn) -> Log:
    rows = draw(st.lists(st.tuples(st.integers(0, 200 * HOUR), st.integers(0, 4)), min_size=1, max_size=60))
    rows.sort(key=lambda row: row[0])
    start = draw(st.sampled_from([0, 1_650_000_000_123, -5 * HOUR]))
    users = np.array([user for _, user in rows], np.int64)
    requests = users * 100 + np.array(draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows))))
    return Log(np.array([time + start for time, _ in rows], dtype=np.int64), users, requests)


orders = st.builds(
    ReadOrder,
    batch_size=st.integers(1, 20),
    window_hours=st.sampled_from([0.0, 1e-9, 0.5, 1.0, 24.0, 1e6]),
    within=st.sampled_from(WITHIN),
)


@st.composite
def readings(draw: st.DrawFn) -> tuple[Log, int, int, ReadOrder, int]:
    log = draw(logs())
    start = draw(st.integers(0, log.num_rows - 1))
    return log, start, draw(st.integers(start + 1, log.num_rows)), draw(orders), draw(st.integers(0, 2**31))


def window_of(log: Log, rows: NDArray[np.int64], hours: float) -> NDArray[np.int64]:
    """The window that each row lies in, straight from the definition."""
    return log.event_time[rows] // max(1, int(hours * HOUR)) if hours else np.zeros(len(rows), np.int64)


@given(readings())
def test_every_row_is_read_once_and_windows_ascend(reading: tuple[Log, int, int, ReadOrder, int]) -> None:
    log, start, stop, order, seed = reading
    batches = list(row_batches(log, start, stop, order, seed))
    rows = np.concatenate(batches)
    assert sorted(rows.tolist()) == list(range(start, stop))
    assert all(batch.dtype == np.int64 and 1 <= len(batch) <= order.batch_size for batch in batches)
    of_batch = [window_of(log, batch, order.window_hours) for batch in batches]
    assert all(len(set(part.tolist())) == 1 for part in of_batch)
    assert (np.diff(np.concatenate(of_batch)) >= 0).all()
    if order.within == "time" or order.window_hours == 0:
        assert (np.diff(rows) == 1).all()


@given(readings())
def test_user_order_keeps_a_users_rows_together_and_in_time_order(
    reading: tuple[Log, int, int, ReadOrder, int],
) -> None:
    log, start, stop, order, seed = reading
    order = ReadOrder(order.batch_size, order.window_hours or 24.0, "user")
    rows = np.concatenate(list(row_batches(log, start, stop, order, seed)))
    window = window_of(log, rows, order.window_hours)
    keys = list(zip(window.tolist(), log.user_id[rows].tolist(), strict=True))
    runs = 1 + sum(1 for one, two in pairwise(keys) if one != two)
    assert runs == len(set(keys))
    for key in set(keys):
        own = [row for row, other in zip(rows.tolist(), keys, strict=True) if other == key]
        assert own == sorted(own)


@given(readings())
def test_request_order_cuts_no_request_that_fits_a_batch(reading: tuple[Log, int, int, ReadOrder, int]) -> None:
    log, start, stop, order, seed = reading
    order = ReadOrder(order.batch_size, order.window_hours or 24.0, "request")
    batches = list(row_batches(log, start, stop, order, seed))
    rows = np.concatenate(batches)
    owner = list(zip(window_of(log, rows, order.window_hours).tolist(), log.request_id[rows].tolist(), strict=True))
    number = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
    for key in set(owner):
        places = [place for place, other in enumerate(owner) if other == key]
        assert places == list(range(places[0], places[0] + len(places))), "its rows are neighbours"
        assert rows[places].tolist() == sorted(rows[places].tolist())
        if len(places) <= order.batch_size:
            assert len(set(number[places].tolist())) == 1, "and in one batch"
    for batch, later in pairwise(batches):
        first = int(np.flatnonzero(rows == later[0])[0])
        size = owner.count(owner[first])
        same_window = owner[first - 1][0] == owner[first][0]
        assert not same_window or len(batch) + min(size, order.batch_size) > order.batch_size or size > order.batch_size


@given(readings())
def test_the_order_is_a_function_of_the_seed(reading: tuple[Log, int, int, ReadOrder, int]) -> None:
    log, start, stop, order, seed = reading
    one, two = (list(row_batches(log, start, stop, order, seed)) for _ in range(2))
    assert [part.tolist() for part in one] == [part.tolist() for part in two]


@pytest.mark.parametrize("within", ["user", "request", "shuffle"])
def test_seeds_and_windows_are_shuffled_differently(within: str) -> None:
    log = Log(np.arange(400) * HOUR // 4, np.arange(400) % 40, np.arange(400) // 4)
    order = ReadOrder(50, 50, within)
    first, again, other = (np.concatenate(list(row_batches(log, 0, 400, order, seed))) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert (first[:200] + 200 != first[200:]).any()


@given(logs(), st.sampled_from([0.0, 0.5, 24.0]))
def test_windows_tile_the_rows(log: Log, hours: float) -> None:
    found = list(windows(log.event_time, 0, log.num_rows, hours))
    assert [found[0][0], found[-1][1]] == [0, log.num_rows]
    assert all(one[1] == two[0] for one, two in pairwise(found))
    assert all(first < last for first, last in found)


def test_an_empty_range_is_refused() -> None:
    log = Log(np.arange(4), np.zeros(4, np.int64), np.zeros(4, np.int64))
    with pytest.raises(DataError, match="no rows to read between positions 2 and 2"):
        list(row_batches(log, 2, 2, ReadOrder(), 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"window_hours": -1.0}, "window_hours must be >= 0 and finite, got -1.0"),
        ({"window_hours": float("nan")}, "window_hours must be >= 0 and finite, got nan"),
        ({"window_hours": float("inf")}, "window_hours must be >= 0 and finite, got inf"),
        ({"within": "random"}, "within must be one of time, user, request, shuffle, got 'random'"),
    ],
)
def test_bad_orders_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReadOrder(**settings)


@pytest.mark.parametrize(
    ("phases", "passes", "first"),
    [
        (Phases(0, 10, 10), [(0, 10)], [0]),
        (Phases(2, 10, 10, 3), [(2, 10)] * 3, [0]),
        (Phases(2, 10, 6, 1), [(2, 6), (6, 10)], [0, 1]),
        (Phases(2, 10, 6, 3), [(2, 6)] * 3 + [(6, 10)], [0, 3]),
        (Phases(2, 10, 2, 3), [(2, 10)], [0]),
        (Phases(4, 4, 4, 2), [], []),
    ],
    ids=["one pass", "epochs", "both phases", "epochs and stream", "stream alone", "nothing"],
)
def test_phases(phases: Phases, passes: list[tuple[int, int]], first: list[int]) -> None:
    assert phases.passes() == passes
    assert [epoch for epoch in range(len(passes)) if phases.first_sight(epoch)] == first
    seen = [row for epoch in first for row in range(*passes[epoch])]
    assert seen == list(range(phases.start, phases.stop))


@pytest.mark.parametrize("bounds", [(5, 4, 4), (0, 4, 5), (3, 4, 2)])
def test_phases_out_of_order_are_refused(bounds: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="start <= stream <= stop"):
        Phases(*bounds)


def test_zero_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_epochs must be >= 1, got 0"):
        Phases(0, 1, 1, 0)


def test_the_sampler_reads_the_pass_of_its_epoch_and_no_more() -> None:
    log = Log(np.arange(30) * HOUR, np.arange(30) % 3, np.arange(30))
    sampler = RowSampler(log, Phases(0, 30, 20, 2), ReadOrder(4, 8, "shuffle"), 7)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(np.concatenate(list(sampler)).tolist())
    assert [sorted(rows) for rows in epochs] == [list(range(20)), list(range(20)), list(range(20, 30))]
    assert epochs[0] != epochs[1]
    sampler.set_epoch(3)
    with pytest.raises(UsageError, match="epoch 4 was asked for, the schedule has 3") as error:
        iter(sampler)
    assert "set max_epochs=data.epochs" in str(error.value)
