"""What a finished import holds."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from dataset_cases import START, at, impressions, log, of

from recdistill_core.rawlog import RawCategorical, RawLog, RawNumeric
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_writer import write_dataset

SECONDS = START // 1000


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_the_same_log_gives_the_same_snapshot(batch: int, tmp_path: Path) -> None:
    one = write_dataset(log(), tmp_path / "one", memory_limit="4GB")
    two = write_dataset(log(batch=batch), tmp_path / "elsewhere" / "two", memory_limit="150MB")
    assert one.snapshot_id == two.snapshot_id
    assert one.files == two.files
    other = write_dataset(log(at(0, "price", 1.25)), tmp_path / "three")
    assert other.snapshot_id != one.snapshot_id


def test_the_manifest(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    made = write_dataset(log(), tmp_path / "out", part_rows=4, progress=lambda done, total: seen.append((done, total)))
    plain = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert seen[-1] == (6, 6)
    assert plain["counts"] == {"rows": 6, "events": 6, "users": 2, "dropped": 2}
    assert plain["time_range"] == [START + 10, START + 50] == list(made.time_range)
    assert plain["origin"] == "a test log"
    assert plain["facts"]["licence"] == "none"
    assert {name: entry["rows"] for name, entry in plain["files"].items() if name.startswith("impressions")} == {
        "impressions/part-00000.arrow": 4,
        "impressions/part-00001.arrow": 2,
    }
    on_disk = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert on_disk == {*plain["files"], "manifest.json"}


def test_rows_are_sorted_and_a_part_is_one_record_batch(tmp_path: Path) -> None:
    columns = {name: values[::-1] for name, values in impressions(id=[9, 8, 7, 6, 5, 4]).items()}
    write_dataset(log(columns, example_id="id"), tmp_path / "out", part_rows=4)
    source = ParquetSource(tmp_path / "out")
    assert source.column("example_id").tolist() == [9, 8, 6, 7, 5, 4]  # equal times: by example id
    for part in (tmp_path / "out").glob("*/part-*.arrow"):
        with pa.memory_map(str(part)) as file:
            assert pa.ipc.open_file(file).num_record_batches == 1


@pytest.mark.parametrize(
    ("unit", "values"),
    [
        ("ms", [START + i for i in range(6)]),
        ("us", [1000 * START + 1000 * i + 999 for i in range(6)]),
        ("s", [SECONDS + i / 1000 for i in range(6)]),
        ("s", [datetime.fromtimestamp(SECONDS + i / 1000) for i in range(6)]),
    ],
    ids=["ms", "us", "float seconds", "timestamps"],
)
def test_units_of_time(unit: str, values: list[Any], tmp_path: Path) -> None:
    write_dataset(log(of("event_time", values), time_unit=unit), tmp_path / "out")
    offset = 0
    if isinstance(values[0], datetime):  # naive timestamps read as UTC
        offset = round((values[0] - datetime(1970, 1, 1)).total_seconds() * 1000) - START
    expected = START + offset + np.arange(6)
    np.testing.assert_array_equal(ParquetSource(tmp_path / "out").column("event_time"), expected)


def test_rare_and_late_values_are_out_of_vocabulary(tmp_path: Path) -> None:
    def ids(**schema: Any) -> list[int]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_dataset(log(**schema), folder)
        return [int(value) for value in ParquetSource(folder).column("genre")]

    # rock at 10, 20, 50; null at 30; jazz at 30, 40.
    assert ids() == [1, 1, 0, 2, 2, 1]
    assert ids(vocabulary_min_count=3) == [1, 1, 0, 0, 0, 1]
    assert ids(vocabulary_until=START + 30) == [1, 1, 0, 0, 0, 1]
    assert ids(vocabulary_until=START + 31) == [1, 1, 0, 2, 2, 1]
    assert ids(vocabulary_until=START + 40, vocabulary_min_count=2) == [1, 1, 0, 0, 0, 1]
    assert ids(vocabulary_until=START) == [0] * 6


def test_ids_do_not_change_when_the_log_grows(tmp_path: Path) -> None:
    write_dataset(log({name: values[:4] for name, values in impressions().items()}), tmp_path / "short")
    write_dataset(log(), tmp_path / "long")
    short, long = ParquetSource(tmp_path / "short"), ParquetSource(tmp_path / "long")
    for name in ("user_id", "item_id", "genre"):
        np.testing.assert_array_equal(short.column(name), long.column(name)[:4])


def test_shared_vocabularies_of_strings_and_integers(tmp_path: Path) -> None:
    """The last item viewed shares the items' ids; one column holds integers, the other strings."""
    columns = impressions(last=["8", None, "7", "99", "7", "8"])
    features = (RawCategorical("item", "item_id"), RawCategorical("last", vocabulary="item"))
    write_dataset(log(columns, categorical=features), tmp_path / "out")
    source = ParquetSource(tmp_path / "out")
    assert source.schema.item_vocabulary == "item"
    assert source.vocabulary("item").to_pylist() == [None, "7", "8", "9", "99"]
    assert source.column("last").tolist() == [2, 0, 1, 4, 1, 2]
    assert source.column("item").tolist() == source.column("item_id").tolist() == [1, 1, 2, 3, 2, 1]


def test_missing_and_logarithm(tmp_path: Path) -> None:
    columns = at(3, "price", None)
    write_dataset(log(columns, numeric=(RawNumeric("p", "price", log1p=True, missing=-1.0),)), tmp_path / "out")
    expected = [np.log1p(1.5), np.log1p(2.5), 0.0, -1.0, np.log1p(3.0), np.log1p(2.0)]
    np.testing.assert_allclose(ParquetSource(tmp_path / "out").column("p"), expected, rtol=1e-6)


def test_other_types_of_columns(tmp_path: Path) -> None:
    """Booleans, dictionaries, integral floats and a column of nulls import as what they say."""
    table = pa.table(impressions())
    changed: dict[str, Any] = {name: table.column(name) for name in table.column_names}
    changed["click"] = pa.array([True, False, None, True, False, True])
    changed["genre"] = table.column("genre").dictionary_encode()
    changed["item_id"] = table.column("item_id").cast(pa.float64())
    changed["none"] = pa.nulls(6)
    features = (RawCategorical("item_id"), RawCategorical("genre"), RawCategorical("none"))
    raw = replace(log(categorical=features), impressions=lambda: iter(pa.table(changed).to_batches()))
    write_dataset(raw, tmp_path / "out")
    source = ParquetSource(tmp_path / "out")
    assert source.column("none").tolist() == [0] * 6
    assert source.column("genre").tolist() == [1, 1, 0, 2, 2, 1]
    assert source.vocabulary("item_id").to_pylist() == [None, 7, 8, 9]
    np.testing.assert_array_equal(source.column("label_click"), [1, 0, np.nan, 1, 0, 1])


def test_no_history_no_features_and_odd_paths(tmp_path: Path) -> None:
    out = tmp_path / "it's [1] *odd*" / "out"
    bare = {"categorical": (), "numeric": (), "history_rates": (), "actions": {}}
    made = write_dataset(log(**bare), out)
    source = ParquetSource(out)
    batch = source.batch(np.arange(6)).validate()
    assert made.counts["events"] == 0
    assert batch.categorical.shape == batch.numeric.shape == (6, 0)
    assert source.schema.capabilities() == frozenset()
    assert source.users().to_pydict() == {"user": ["ann", "bob"], "event_start": [0, 0], "event_count": [0, 0]}


def test_a_long_log_is_cut_into_parts_and_chunks(tmp_path: Path) -> None:
    """More rows than one staged chunk, in uneven batches, against numpy."""
    count = 150_001
    random = np.random.default_rng(0)
    columns = {
        "user_id": random.integers(0, 50, count),
        "item_id": random.integers(0, 100, count),
        "event_time": START + random.integers(0, 10_000, count),
        "genre": random.integers(0, 5, count).astype(str),
        "price": random.random(count),
        "click": random.integers(0, 2, count),
        "like": random.integers(0, 2, count),
    }
    table = pa.table(columns)
    cuts = [0, 10, 70_000, 70_001, count]
    batches = [batch for a, b in itertools.pairwise(cuts) for batch in table.slice(a, b - a).to_batches()]
    raw: RawLog = replace(log(), impressions=lambda: iter(batches))
    write_dataset(raw, tmp_path / "out", part_rows=40_000)
    source = ParquetSource(tmp_path / "out")
    order = np.lexsort((np.arange(count), columns["event_time"]))
    np.testing.assert_array_equal(source.column("example_id"), order)
    np.testing.assert_allclose(source.column("price"), columns["price"][order].astype(np.float32))
    user = columns["user_id"][order]
    found = {name: source.column(name) for name in ("history_end", "activity", "click_rate")}
    for who in range(50):  # the events of some users lie in two batches, and in two parts
        chosen = np.flatnonzero(user == who)
        times = columns["event_time"][order][chosen]
        past = np.searchsorted(times, times)
        clicks = np.concatenate(([0], np.cumsum(columns["click"][order][chosen])))[past]
        np.testing.assert_array_equal(found["history_end"][chosen], past)
        np.testing.assert_allclose(found["activity"][chosen], np.log1p(past), rtol=1e-6)
        np.testing.assert_allclose(found["click_rate"][chosen], (clicks + 1.2) / (past + 4.0), rtol=1e-6)
