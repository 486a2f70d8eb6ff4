"""Checks for sample sources. They look at the first ``ROWS`` rows of the example's data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError
from recdistill_core.interfaces import HistoryWindow, SampleSource
from recdistill_core.testing.cases import Case, NotApplicable, check, exercise
from recdistill_core.testing.compare import differences, leaves

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: So many rows are looked at; an example with fewer is fine.
ROWS = 160
#: Rows of a batch while reading on from a cursor.
STEP = 7
#: Shows every event of any history.
WHOLE = HistoryWindow(1 << 30, 1 << 30)
WINDOWS = (
    HistoryWindow(1, 1),
    HistoryWindow(4, 2),
    HistoryWindow(5, 1),
    HistoryWindow(6, 6),
    HistoryWindow(4, 1, 2),
    WHOLE,
)


def positions(count: int, first: int = 0) -> NDArray[np.int64]:
    """``[first, count)``."""
    import numpy as np

    return np.arange(first, count, dtype=np.int64)


def _tensor(column: Any) -> Tensor:
    """A copy: columns may be read-only maps of a file."""
    import numpy as np

    return torch.from_numpy(np.array(column))


def extent(case: Case, source: SampleSource) -> int:
    """How many rows are looked at, 2 or more."""
    case.require(source.num_rows >= 2, f"has an example of {source.num_rows} rows: give it two or more")
    return min(source.num_rows, ROWS)


def window_of(source: SampleSource) -> HistoryWindow | None:
    """A window with which a source that has events is read."""
    return HistoryWindow(4, 2) if source.schema.events else None


def events_of(batch: Batch, row: int) -> dict[str, Tensor]:
    """The events ``[events]`` of a history that one row sees."""
    history = batch.history
    if history is None:
        return {}
    first = int(history.offsets[history.row_to_history[row]])
    return {name: column[first : first + int(history.row_end[row])] for name, column in history.events.items()}


def row_of(batch: Batch, row: int) -> dict[str, Any]:
    """Everything that a batch says of one row, however it lies in memory."""
    plain = leaves(Batch(**{**vars(batch), "history": None, "teacher": None}))
    picked = {name: value[row] if isinstance(value, Tensor) else value for name, value in plain.items()}
    return picked | {f"history.{name}": column for name, column in events_of(batch, row).items()}


def require_rows(case: Case, batch: Batch, wanted: Mapping[int, Mapping[str, Any]], rows: Any, how: str) -> None:
    """Fail unless each row of ``batch``, which was asked for as ``rows``, is as it is in ``wanted``."""
    case.require(len(batch) == len(rows), f"gives {len(batch)} rows {how}; {len(rows)} were asked for")
    for place, row in enumerate(rows):
        changed = differences(wanted[int(row)], row_of(batch, place))
        case.require(not changed, f"gives another row {int(row)} {how}: {', '.join(changed[:5])} differ")


def one_pass(source: SampleSource, count: int) -> dict[int, dict[str, Any]]:
    """Row -> what the source says of it, read in one batch."""
    batch = source.batch(positions(count), window_of(source))
    return {row: row_of(batch, row) for row in range(len(batch))}


@exercise("source")
def run_source(case: Case, made: SampleSource) -> Mapping[str, Any]:
    """One batch with histories, and what the source says of itself."""
    batch = made.batch(positions(min(made.num_rows, 20)), window_of(made))
    return {"batch": batch, "snapshot_id": made.snapshot_id, "num_rows": made.num_rows}


@check("source")
def rows_are_in_time_order(case: Case) -> None:
    """``event_time`` never falls from one row to the next, and columns have ``num_rows`` rows."""
    source = case.build()
    time = _tensor(source.column("event_time"))
    case.require(
        len(time) == source.num_rows, f"has {len(time)} event times and says that it has {source.num_rows} rows"
    )
    back = (time[1:] < time[:-1]).nonzero().flatten()
    if len(back):
        row = int(back[0])
        case.fail(f"goes back in time from row {row} ({int(time[row])}) to row {row + 1} ({int(time[row + 1])})")


@check("source")
def row_at_is_the_first_row_at_or_after_a_time(case: Case) -> None:
    """``row_at`` agrees with the column ``event_time``, at, between, before and after its values."""
    source = case.build()
    time = _tensor(source.column("event_time"))
    picked = torch.unique(time[torch.linspace(0, len(time) - 1, 40).long()])
    for moment in torch.cat([picked - 1, picked, picked + 1]).tolist():
        wanted, found = int((time < moment).sum()), source.row_at(moment)
        case.require(found == wanted, f"says that row {found} is the first at or after {moment}; it is row {wanted}")


@check("source")
def a_batch_is_the_columns_in_the_order_asked_for(case: Case) -> None:
    """``batch(rows)`` holds what ``column`` holds at ``rows``, in that order, repeats included."""
    source = case.build()
    count = extent(case, source)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([order, order[:3]])
    batch = source.batch(rows.numpy(), window_of(source))
    for name in ("example_id", "user_id", "item_id", "event_time"):
        column = _tensor(source.column(name))[rows]
        same = len(batch) == len(rows) and torch.equal(getattr(batch, name), column.to(torch.int64))
        case.require(same, f"gives another {name} in a batch than in the column, for rows in shuffled order")
    for task in source.schema.tasks:
        column = _tensor(source.column(f"label_{task}"))[rows]
        seen = batch.observed[task]
        same = torch.equal(seen, ~column.isnan()) and torch.equal(batch.labels[task][seen], column[seen].float())
        case.require(same, f"gives another label of task {task!r} in a batch than in the column (NaN: not observed)")
    require_rows(case, batch, one_pass(source, count), rows, "in a batch in shuffled order")


@check("source")
def reading_on_from_any_cursor_is_one_pass(case: Case) -> None:
    """A reader that stops and goes on, here or in a new opening, sees the rows of an uninterrupted pass."""
    source = case.build()
    count = extent(case, source)
    wanted = one_pass(source, count)
    for cursor in range(count):
        rows = positions(min(cursor + STEP, count), cursor)
        reader = case.build() if cursor % 10 == 0 else source
        require_rows(case, reader.batch(rows, window_of(source)), wanted, rows, f"when it is read on from row {cursor}")


@check("source")
def history_holds_only_earlier_events(case: Case) -> None:
    """Every event that a row sees lies strictly before the row's own time, oldest first."""
    source = _with_events(case)
    rows = positions(extent(case, source))
    batch = source.batch(rows, WHOLE)
    case.require(batch.history is not None, "gives no history where a HistoryWindow asks for one")
    longest = 0
    for row in range(len(batch)):
        time, now = events_of(batch, row)["time"], int(batch.event_time[row])
        longest = max(longest, len(time))
        late = (time >= now).nonzero().flatten()
        case.require(
            not len(late), f"shows row {row}, at {now}, an event at {int(time[late[0]]) if len(late) else 0}: no past"
        )
        case.require(
            bool((time[1:] >= time[:-1]).all()), f"shows row {row} its events in another order than oldest first"
        )
    case.require(longest > 0, "has an example without a single event before a row, so its histories cannot be checked")


@check("source")
def history_is_what_its_window_says(case: Case) -> None:
    """A row sees the events that a HistoryWindow gives it, whatever rows are read with it."""
    source = _with_events(case)
    rows = positions(extent(case, source))
    everything = source.batch(rows, WHOLE)
    for window in WINDOWS:
        batch = source.batch(rows, window)
        for row in range(len(batch)):
            whole, seen = events_of(everything, row), events_of(batch, row)
            start = window.start(len(whole["time"]))
            left = torch.arange(len(whole["time"]))
            left = left[(left >= start) | (left < window.oldest)]
            wanted = {name: column[left] for name, column in whole.items()}
            case.require(
                not differences(wanted, seen),
                f"shows row {row} {len(seen['time'])} events for {window}; it has {len(whole['time'])} "
                f"before it, of which the window leaves those from {start} on"
                + (f" and the oldest {window.oldest}" if window.oldest and start else ""),
            )
    case.require(source.batch(rows, None).history is None, "gives a history that no HistoryWindow asks for")


def _with_events(case: Case) -> SampleSource:
    source: SampleSource = case.build()
    if not source.schema.events:
        raise NotApplicable("its schema has no events")
    return source


@check("source")
def two_openings_are_equal(case: Case) -> None:
    """Two objects of one configuration agree on ``snapshot_id``, ``schema``, ``num_rows`` and the rows."""
    one, other = case.build(), case.build(seed=1)
    for name in ("snapshot_id", "schema", "num_rows"):
        first, second = getattr(one, name), getattr(other, name)
        case.require(first == second, f"says {name} is {first!r} in one opening and {second!r} in another")
    case.require(isinstance(one.snapshot_id, str) and bool(one.snapshot_id), "has no snapshot_id")
    count = extent(case, one)
    rows = positions(count)
    require_rows(case, other.batch(rows, window_of(one)), one_pass(one, count), rows, "in a second opening")


@check("source")
def every_batch_keeps_the_data_contract(case: Case) -> None:
    """Batches pass ``Batch.validate`` and hold what the schema promises; ids lie in their vocabularies."""
    source = case.build()
    schema, batch = source.schema, source.batch(positions(extent(case, source)), window_of(source))
    try:
        batch.validate("the first rows")
    except DataError as error:
        case.fail(f"gives a batch that breaks the data contract: {error}")
    case.require(len(set(batch.example_id.tolist())) == len(batch), "gives one example_id to two rows")
    case.require(set(batch.labels) == set(schema.tasks), f"gives labels of {list(batch.labels)}; not {schema.tasks}")
    for name, width in (("categorical", len(schema.categorical)), ("numeric", len(schema.numeric))):
        shape = tuple(getattr(batch, name).shape)
        case.require(
            shape == (len(batch), width), f"gives {name} of shape {shape}; the schema has {width} such features"
        )
    for place, feature in schema.feature_index():
        _require_ids(case, schema.vocabulary_size(feature.vocabulary), batch.categorical[:, place], feature.name)
    _require_ids(case, schema.num_items, batch.item_id, "item_id")
    for name in ("position", "propensity"):
        given = getattr(batch, name) is not None
        case.require(given or name not in schema.gives, f"promises {name} in its schema and gives none")


def _require_ids(case: Case, size: int, ids: Tensor, name: str) -> None:
    wrong = ids[(ids < 0) | (ids >= size)]
    case.require(
        not len(wrong), f"gives {name} {int(wrong[0]) if len(wrong) else 0}; its vocabulary has {size} entries"
    )


@check("source")
def truth_is_a_probability(case: Case) -> None:
    """``truth`` is None, or ``[num_rows]`` values in [0, 1], for every task."""
    source = case.build()
    for task in source.schema.tasks:
        found = source.truth(task)
        if found is None:
            continue
        values = _tensor(found)
        shape = tuple(values.shape)
        case.require(shape == (source.num_rows,), f"has a truth of shape {shape}, not ({source.num_rows},)")
        inside = bool(((values >= 0) & (values <= 1)).all())
        case.require(inside, f"has a truth of task {task!r} outside [0, 1]: it is a probability, no logit")
