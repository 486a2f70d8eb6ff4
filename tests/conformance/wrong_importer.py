"""Importers that break their contract: a log of 40 rows with one fault each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from wrong import Wrong, wrong

from recdistill_core.rawlog import RawCategorical, RawLog, RawNumeric, RawSchema

START = 1_650_000_000_000
SCHEMA = RawSchema(
    tasks={"click": "click"},
    categorical=(RawCategorical("tab"), RawCategorical("item", "item_id", side="item")),
    numeric=(RawNumeric("age"),),
    actions={"click": "did_click"},
    outcomes=("play_time",),
    truth={"click": "chance"},
    position="position",
    propensity="propensity",
    example_id="number",
    time_ordered=True,
)


def rows(first: int, count: int) -> dict[str, Any]:
    """Columns of ``count`` impressions."""
    row, draw = np.arange(first, first + count), np.random.default_rng(first)
    click = draw.integers(0, 2, count)
    return {
        "user_id": row % 3,
        "item_id": row % 5,
        "event_time": START + row * 1000,
        "number": row,
        "tab": draw.integers(0, 2, count),
        "age": draw.normal(size=count),
        "position": row % 2,
        "propensity": np.full(count, 0.5),
        "chance": draw.random(count),
        "click": click,
        "did_click": click,
        "play_time": 3.0 * click,
    }


def batches(change: Callable[[dict[str, Any]], dict[str, Any]] = lambda columns: columns) -> Iterator[Any]:
    """Two record batches."""
    for first in (0, 20):
        yield pa.record_batch({name: pa.array(column) for name, column in change(rows(first, 20)).items()})


def events() -> Iterator[Any]:
    """Three events before the log."""
    yield pa.record_batch(
        {"user_id": [0, 1, 2], "item_id": [1, 2, 3], "event_time": [START - 5] * 3, "did_click": [1] * 3}
    )


LOG = RawLog(SCHEMA, batches, "forty rows", lambda row: f"forty rows, row {row}", events, total=40)


class Importer:
    """Forty rows."""

    def __init__(self, make: Callable[[], RawLog]) -> None:
        self.make = make

    def open(self) -> RawLog:
        return self.make()


def importer(check: str, fault: str, make: Callable[[], RawLog]) -> Wrong:
    return wrong(check, "importer", lambda config, context: Importer(make), fault)


def other(**columns: Callable[[dict[str, Any]], Any]) -> Callable[[], RawLog]:
    """The log with some columns made anew from all columns of a batch."""

    def change(found: dict[str, Any]) -> dict[str, Any]:
        return {**found, **{name: make(found) for name, make in columns.items()}}

    return lambda: replace(LOG, impressions=lambda: batches(change))


def described(**changes: Any) -> Callable[[], RawLog]:
    """The log with another schema."""
    return lambda: replace(LOG, schema=replace(SCHEMA, **changes))


def first(values: Any, value: Any) -> Any:
    """``values`` with another first one."""
    return pa.array([value, *np.asarray(values).tolist()[1:]])


def counted(make: Callable[[int], RawLog]) -> Callable[[], RawLog]:
    """A log that hangs on how many were opened before."""
    numbers = itertools.count()
    return lambda: make(next(numbers))


def once() -> RawLog:
    """One pass, however often it is asked for."""
    stream = batches()
    return replace(LOG, impressions=lambda: stream)


def shared() -> RawLog:
    """Passes that go on where another one is."""
    place = {"next": 0}

    def stream() -> Iterator[Any]:
        place["next"] = 0
        while place["next"] < 2:
            place["next"] += 1
            yield list(batches())[place["next"] - 1]

    return replace(LOG, impressions=stream)


def shifting() -> Iterator[Any]:
    """Batches of two Arrow schemas."""
    one, two = batches()
    yield one
    yield two.set_column(two.schema.names.index("age"), "age", two.column("age").cast(pa.float32()))


OPEN = "opening_twice_gives_the_same_rows"
FRESH = "every_pass_is_fresh"
NAMED = "every_named_column_is_there"
LABEL = "no_label_is_among_the_features"
LEGAL = "times_and_labels_are_legal"
FOUND = "rows_can_be_found_again"
AT = "at forty rows, row 0"
WRONG = [
    importer(
        OPEN,
        "describes its columns differently when reopened",
        counted(lambda number: replace(LOG, schema=replace(SCHEMA, vocabulary_min_count=number + 1))),
    ),
    importer(OPEN, "has an example without impressions", lambda: replace(LOG, impressions=lambda: iter(()))),
    importer(
        OPEN,
        "gives other impressions when it is opened again: age differ",
        counted(lambda number: other(age=lambda found: found["age"] + number)()),
    ),
    importer(FRESH, "gives other impressions in a second pass, begun beside another one", once),
    importer(FRESH, "gives other impressions in the first pass, begun beside another one", shared),
    importer(NAMED, "names columns that its impressions lack: nothing", described(position="nothing")),
    importer(NAMED, "names columns that its events lack: play_time", described(actions={"watch": "play_time"})),
    importer(
        NAMED,
        "gives impressions whose Arrow schema changes from batch to batch",
        lambda: replace(LOG, impressions=shifting),
    ),
    importer(
        LABEL,
        "has the feature 'hint', which is the label of task 'click'",
        described(numeric=(RawNumeric("hint", "click"),)),
    ),
    importer(
        LABEL, "has the feature 'chance', which is the true probability", described(numeric=(RawNumeric("chance"),))
    ),
    importer(
        LABEL,
        "has the feature 'play_time', which is named among the outcomes",
        described(numeric=(RawNumeric("play_time"),)),
    ),
    importer(
        LABEL,
        "has the feature 'did_click', which is the outcome behind action 'click'",
        described(categorical=(RawCategorical("did_click"),)),
    ),
    importer(
        LABEL,
        "has the feature 'tab', whose values are those of the label of task 'click'",
        other(tab=lambda found: np.where(found["click"] == 1, "a", "b")),
    ),
    importer(LEGAL, "has time_unit 'min', none of ['s', 'ms', 'us']", described(time_unit="min")),
    importer(LEGAL, f"gives {START} for impressions: event_time, {AT}", described(time_unit="s")),
    importer(
        LEGAL, f"gives None for impressions: event_time, {AT}", other(event_time=lambda f: first(f["event_time"], None))
    ),
    importer(
        LEGAL, "promises time_ordered and goes back in time", other(event_time=lambda f: f["event_time"][::-1].copy())
    ),
    importer(LEGAL, f"gives 2 for label click, {AT}", other(click=lambda found: first(found["click"], 2))),
    importer(LEGAL, f"gives nan for label click, {AT}", other(click=lambda found: first(found["click"] * 1.0, np.nan))),
    importer(LEGAL, f"gives -1 for position, {AT}", other(position=lambda found: found["position"] - 1)),
    importer(LEGAL, f"gives 0.0 for propensity, {AT}", other(propensity=lambda found: found["propensity"] * 0)),
    importer(LEGAL, "gives one number to two rows", other(number=lambda found: found["number"] // 2)),
    importer(FOUND, "does not name its origin", lambda: replace(LOG, origin=" ")),
    importer(FOUND, "locates a row nowhere", lambda: replace(LOG, locate=lambda row: "")),
    importer(FOUND, "locates two rows at one place: ['here', 'here']", lambda: replace(LOG, locate=lambda row: "here")),
    importer(FOUND, "says that it has 41 impressions and gives 40", lambda: replace(LOG, total=41)),
    importer(
        "importing_twice_gives_one_snapshot",
        "; its rows or facts change",
        counted(lambda number: other(age=lambda found: found["age"] + number)()),
    ),
]
