"""Histories and history rates against a naive reference, over random logs with many ties in time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_cases import SCHEMA, START, log, naive_events, naive_past, naive_rates, naive_window
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill_core.batch import Batch
from recdistill_core.interfaces import HistoryWindow
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_parts import PartReader, PartWriter
from recdistill_parquet.dataset_writer import write_dataset

COLUMNS = ("user_id", "item_id", "event_time", "genre", "price", "click", "like")
ROW = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from("abc"),
        "item_id": st.integers(1, 4),
        "event_time": st.integers(START, START + 8),
        "genre": st.sampled_from(["rock", "jazz", None]),
        "price": st.just(1.0),
        "click": st.sampled_from([0, 1, None]),
        "like": st.sampled_from([0, 1, None]),
    }
)


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in COLUMNS}


def check_row(batch: Batch, number: int, past: list[Any], window: HistoryWindow, source: ParquetSource) -> None:
    """Row ``number`` of the batch sees exactly ``past``, cut by the window."""
    history = batch.history
    assert history is not None
    begin = int(history.offsets[history.row_to_history[number]])
    end = begin + int(history.row_end[number])
    seen = [past[place] for place in naive_window(len(past), window.length, window.stride, window.oldest)]
    items, genres = (source.vocabulary(name).to_pylist() for name in ("item_id", "genre"))
    assert [items[i] for i in history.events["item"][begin:end].tolist()] == [event["item"] for event in seen]
    assert [genres[i] for i in history.events["genre"][begin:end].tolist()] == [event["genre"] for event in seen]
    assert history.events["action"][begin:end].tolist() == [event["action"] for event in seen]
    assert history.events["time"][begin:end].tolist() == [event["time"] for event in seen]
    assert all(time < int(batch.event_time[number]) for time in history.events["time"][begin:end].tolist())


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(ROW, min_size=2, max_size=40),
    extra=st.lists(ROW, max_size=8),
    part_rows=st.sampled_from([1, 3, 7, 100]),
    length=st.integers(1, 12),
    stride=st.integers(1, 12),
    oldest=st.integers(0, 4),
    seed=st.integers(0, 1000),
    hidden=st.sets(st.integers(2, 39), max_size=20),
)
def test_a_row_sees_exactly_the_events_strictly_before_it(
    rows: list[dict[str, Any]],
    extra: list[dict[str, Any]],
    part_rows: int,
    length: int,
    stride: int,
    oldest: int,
    seed: int,
    hidden: set[int],
) -> None:
    rows[0]["click"], rows[1]["click"] = 0, 1  # a task needs both classes
    for number in hidden & set(range(len(rows))):  # candidates that were not shown
        rows[number] |= {"click": None, "like": None}
    flags = {"shown": [int(number not in hidden) for number in range(len(rows))]}
    window = HistoryWindow(oldest + max(length, stride), min(length, stride), oldest)
    events = columns(extra) if extra else None
    raw = log(columns(rows) | flags, SCHEMA, events=events, event_fields={"genre": "genre"}, shown="shown")
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(raw, Path(folder) / "out", part_rows=part_rows)
        source = ParquetSource(Path(folder) / "out")
        source.verify()
        order = np.random.default_rng(seed).integers(0, len(rows), 2 * len(rows))
        batch = source.batch(order, window).validate()
        seen = naive_events([row for row, shown in zip(rows, flags["shown"], strict=True) if shown], extra)
        assert source.manifest.counts["events"] == len(seen)
        for number, example in enumerate(batch.example_id.tolist()):
            past = naive_past(seen, rows[example])
            check_row(batch, number, past, window, source)
            np.testing.assert_allclose(batch.numeric[number, 1:].numpy(), naive_rates(past), rtol=1e-6)
            assert bool(batch.observed["click"][number]) == (rows[example]["click"] is not None)
            assert int(batch.labels["click"][number]) == (rows[example]["click"] or 0)


@settings(max_examples=10, deadline=None)
@given(rows=st.lists(ROW, min_size=3, max_size=12), chosen=st.integers(0, 11))
def test_no_outcome_moves_its_own_row_or_an_earlier_one(rows: list[dict[str, Any]], chosen: int) -> None:
    """Flip every outcome of one row: only labels of that row, and what strictly later rows see, may change."""
    rows[0]["click"], rows[1]["click"], flipped = 0, 1, min(chosen, len(rows) - 1)
    changed = [dict(row) for row in rows]
    changed[flipped] |= {"click": 1 - (rows[flipped]["click"] or 0), "like": 1 - (rows[flipped]["like"] or 0)}
    if {row["click"] for row in changed} & {0, 1} != {0, 1}:
        return
    seen = []
    for variant in (rows, changed):
        with tempfile.TemporaryDirectory() as folder:
            write_dataset(log(columns(variant)), Path(folder) / "out")
            source = ParquetSource(Path(folder) / "out")
            until = source.row_at(rows[flipped]["event_time"] + 1)
            batch = source.batch(np.arange(until), HistoryWindow(100, 10))
            assert batch.history is not None
            views = [past.numpy() for past in batch.history.last(40)[0].values()]
            seen.append([batch.categorical.numpy(), batch.numeric.numpy(), batch.example_id.numpy(), *views])
    for before, after in zip(*seen, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("part_rows", [2, 5, 1000])
def test_rows_of_one_user_and_start_share_a_history(part_rows: int, tmp_path: Path) -> None:
    count = 40
    rows = [
        {
            "user_id": "ann",
            "item_id": 1,
            "event_time": START + i,
            "genre": None,
            "price": 0.0,
            "click": i % 2,
            "like": 0,
        }
        for i in range(count)
    ]
    write_dataset(log(columns(rows)), tmp_path / "out", part_rows=part_rows)
    batch = ParquetSource(tmp_path / "out").batch(np.arange(count), HistoryWindow(10, 5))
    assert batch.history is not None
    # Starts 0, 5, ..., 30 for prefixes of up to 39 events.
    assert batch.history.offsets.numel() - 1 == 7
    assert batch.history.lengths.tolist() == [10, 10, 10, 10, 10, 10, 9]
    assert int((batch.history.row_end > 10).sum()) == 0
    starts = [0, 5, 10, 15, 20, 25, 30]
    seen = [
        START + start + place for start, length in zip(starts, [10] * 6 + [9], strict=True) for place in range(length)
    ]
    assert batch.history.events["time"].tolist() == seen


@settings(max_examples=60, deadline=None)
@given(
    ranges=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=8),
    rows=st.lists(st.integers(0, 52), max_size=20),
    part_rows=st.sampled_from([1, 4, 7, 53, 100]),
)
def test_parts_read_like_one_array(ranges: list[tuple[int, int]], rows: list[int], part_rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = PartWriter(Path(folder), {"a": np.int32, "m": (np.float32, 2)}, part_rows)
        matrix = np.arange(106, dtype=np.float32).reshape(53, 2)
        for start in range(0, 53, 10):
            writer.append({"a": np.arange(start, min(start + 10, 53)), "m": matrix[start : start + 10]})
        writer.close()
        reader = PartReader(Path(folder), 53, part_rows)
        starts, lengths = np.array(ranges, np.int64).reshape(-1, 2).T
        expected = [value for start, length in ranges for value in range(start, start + length)]
        assert reader.take_ranges(starts, lengths, ["a"])["a"].tolist() == expected
        taken = reader.take(np.array(rows, np.int64), ["a", "m"])
        assert taken["a"].tolist() == rows
        np.testing.assert_array_equal(taken["m"], matrix[rows])
        np.testing.assert_array_equal(reader.column("m", 1), matrix[:, 1])
