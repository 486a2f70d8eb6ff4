"""Small logs, and a naive reference of what a dataset must hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from recdistill_core.rawlog import HistoryRate, RawCategorical, RawLog, RawNumeric, RawSchema

START = 1_600_000_000_000
SCHEMA = RawSchema(
    tasks={"click": "click"},
    categorical=(RawCategorical("item_id", side="item"), RawCategorical("genre", side="item")),
    numeric=(RawNumeric("price"),),
    history_rates=(HistoryRate("click_rate", "click", 0.3, 4.0), HistoryRate("activity")),
    actions={"click": "click", "like": "like"},
    outcomes=("watch_time",),
)


def impressions(**changed: Sequence[Any]) -> dict[str, list[Any]]:
    """Six impressions of two users; ``changed`` replaces columns."""
    columns: dict[str, Sequence[Any]] = {
        "user_id": ["ann", "bob", "ann", "ann", "bob", "ann"],
        "item_id": [7, 7, 8, 9, 8, 7],
        "event_time": [START + ms for ms in (10, 20, 30, 30, 40, 50)],
        "genre": ["rock", "rock", None, "jazz", "jazz", "rock"],
        "price": [1.5, 2.5, 0.0, -1.0, 3.0, 2.0],
        "click": [1, 0, None, 1, 0, 1],
        "like": [0, 0, 1, None, 0, 1],
        "watch_time": [9.0, 0.1, 4.0, 5.0, 0.2, 6.0],
    }
    return {name: list(values) for name, values in {**columns, **changed}.items()}


def at(row: int, column: str, value: Any) -> dict[str, list[Any]]:
    """The impressions with one value changed."""
    columns = impressions()
    columns[column][row] = value
    return columns


def of(column: str, values: Any) -> dict[str, list[Any]]:
    """The impressions with one column changed or added."""
    return impressions(**{column: values})


def words(error: Any, *expected: str) -> None:
    """The error's text holds every one of these."""
    for text in expected:
        assert text in str(error.value), f"{text!r} is not in:\n{error.value}"


def log(
    columns: Mapping[str, Sequence[Any]] | None = None,
    schema: RawSchema = SCHEMA,
    *,
    batch: int = 4,
    events: Mapping[str, Sequence[Any]] | None = None,
    **changed: Any,
) -> RawLog:
    """A log of these columns in record batches of ``batch`` rows; ``changed`` replaces parts of the schema."""
    table = pa.table(dict(impressions() if columns is None else columns))
    extra = None if events is None else pa.table(dict(events))

    def read(source: pa.Table) -> Iterator[pa.RecordBatch]:
        return iter(source.to_batches(max_chunksize=batch))

    return RawLog(
        schema=replace(schema, **changed),
        impressions=lambda: read(table),
        events=None if extra is None else (lambda: read(extra)),
        origin="a test log",
        locate=lambda row: f"log.csv, row {row + 1}",
        facts={"licence": "none", "dropped": 2},
        total=table.num_rows,
    )


def naive_events(rows: Sequence[Mapping[str, Any]], extra: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All events in (time, impression first, order of the log), with their action code."""
    marked = [(row["event_time"], source, number, row) for source, part in enumerate((rows, extra))
              for number, row in enumerate(part)]  # fmt: skip
    ordered = sorted(marked, key=lambda entry: entry[:3])
    return [
        {"user": row["user_id"], "item": row["item_id"], "time": row["event_time"], "genre": row["genre"],
         "action": (row["click"] or 0) + 2 * (row["like"] or 0)} for _, _, _, row in ordered
    ]  # fmt: skip


def naive_past(events: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The events of the row's user strictly before it."""
    return [event for event in events if event["user"] == row["user_id"] and event["time"] < row["event_time"]]


def naive_rates(past: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The two history rates of ``SCHEMA``."""
    clicks = sum(event["action"] & 1 for event in past)
    return (clicks + 4.0 * 0.3) / (len(past) + 4.0), math.log(1 + len(past))


def naive_window(count: int, length: int, stride: int, oldest: int = 0) -> list[int]:
    """Places of the events that a row with ``count`` past events sees."""
    if count <= length:
        return list(range(count))
    start = 0
    while start < count - (length - oldest):
        start += stride
    return [*range(oldest), *range(start, count)]
