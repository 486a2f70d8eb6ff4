"""What an import refuses, and in which words."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from dataset_cases import START, at, impressions, log, of, words

from recdistill_core.errors import DataError, UsageError
from recdistill_core.rawlog import HistoryRate, RawCategorical, RawNumeric
from recdistill_core.schema import KeepRates
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_writer import write_dataset

NUMERIC = (RawNumeric("price"),)
SECONDS = START // 1000
LATE = int(time.time()) + 3 * 86_400


BAD_VALUES: list[tuple[dict[str, list[Any]], dict[str, Any], tuple[str, ...]]] = [
    (at(4, "click", 2), {}, ("label of task 'click' is 2, neither 0 nor 1", "log.csv, row 5, column 'click'", "null")),
    (of("click", [1.0, 0.0, 0.5, 1, 0, 1]), {}, ("is 0.5, neither 0 nor 1", "row 3")),
    (of("click", ["1", "0"] * 3), {}, ("label of task 'click' must be a number, got string", "cast the column")),
    (
        at(2, "like", -1),
        {},
        ("outcome of action 'like' is -1, neither 0 nor 1", "row 3, column 'like'", "null reads 0"),
    ),
    (
        at(5, "price", float("nan")),
        {},
        ("numeric feature 'price' is nan, not a finite float32", "row 6, column 'price'"),
    ),
    (at(1, "price", float("-inf")), {}, ("is -inf, not a finite float32", "row 2", "drop the row")),
    (at(1, "price", 1e39), {}, ("is 1e+39, not a finite float32", "row 2")),
    (at(3, "price", None), {}, ("numeric feature 'price' is null", "row 4", "set `missing` for this feature")),
    (at(3, "price", -0.5), {"numeric": (RawNumeric("price", log1p=True),)}, ("is -0.5, and log1p", "row 4", "`log1p`")),
    (of("price", ["a"] * 6), {}, ("numeric feature 'price' must be a number, got string", "column 'price'")),
    (at(4, "event_time", START), {"time_ordered": True}, ("is earlier than that of the row before", "row 5", "sort")),
    (of("event_time", [START + 5 - i for i in range(6)]), {"time_ordered": True}, ("is earlier", "row 2")),
    (at(0, "event_time", LATE * 1000), {}, ("in the future when read in ms", "row 1", "mend its time")),
    (at(0, "event_time", -5), {}, ("event_time is -5: before the year 1990", "row 1, column 'event_time'")),
    (of("event_time", [SECONDS] * 6), {}, ("before the year 1990 when read in ms", "set `time_unit: s`")),
    (of("event_time", [START] * 6), {"time_unit": "s"}, ("in the future when read in s", "set `time_unit: ms`")),
    (of("event_time", [START * 1000] * 6), {}, ("in the future when read in ms", "set `time_unit: us`")),
    (of("event_time", [START] * 6), {"time_unit": "us"}, ("before the year 1990 when read in us", "`time_unit: ms`")),
    (at(2, "event_time", None), {}, ("event_time is null", "row 3, column 'event_time'", "drop the row")),
    (of("event_time", ["2020-01-01"] * 6), {}, ("must be an integer or a timestamp, got string", "`time_unit: iso`")),
    (of("event_time", np.full(6, 2**64 - 1, np.uint64)), {}, ("in the future", "row 1")),
    (of("event_time", [1e300] * 6), {"time_unit": "s"}, ("event_time is 1e+300: in the future", "row 1")),
    (of("event_time", [float("inf")] * 6), {}, ("event_time is inf", "row 1")),
    (at(5, "user_id", None), {}, ("user_id is null", "row 6, column 'user_id'")),
    (at(5, "item_id", None), {}, ("item_id is null", "row 6, column 'item_id'")),
    (of("item_id", [1.5] * 6), {}, ("must be strings or integers", "got double", "column 'item_id'")),
    (of("genre", [[1]] * 6), {}, ("must be strings or integers, got list", "column 'genre'", "cast it to a string")),
    (
        of("id", [1, 2, 3, 4, 5, 2]),
        {"example_id": "id"},
        ("example_id 2 occurs twice", "row 2 and log.csv, row 6", "'id'"),
    ),
    (of("id", [1, None, 3, 4, 5, 2]), {"example_id": "id"}, ("example_id is null", "row 2")),
    (of("id", list("abcdef")), {"example_id": "id"}, ("example_id must be an integer, got string", "column 'id'")),
    (of("id", [1, None, 3, 4, 5, 2]), {"request_id": "id"}, ("request_id is null", "row 2")),
    (of("rank", [0, 1, -1, 0, 0, 0]), {"position": "rank"}, ("position is -1, below 0", "row 3", "from 0 = top")),
    (of("rank", [0, 1, None, 0, 0, 0]), {"position": "rank"}, ("position is null", "row 3")),
    (of("p", [0.5, 0.0, 1, 1, 1, 1]), {"propensity": "p"}, ("propensity is 0.0, outside (0, 1]", "row 2", "drop rows")),
    (of("p", [0.5, 1.1, 1, 1, 1, 1]), {"propensity": "p"}, ("propensity is 1.1, outside (0, 1]", "row 2")),
    (of("p", [0.5, 1.0, 1, 1, 1, None]), {"propensity": "p"}, ("propensity is None, outside (0, 1]", "row 6")),
    (of("t", [0.5, 1.0, 2, 1, 1, 1]), {"truth": {"click": "t"}}, ("true probability of task 'click' is 2", "row 3")),
    (of("seen", [1, 1, 1, 2, 1, 1]), {"shown": "seen"}, ("shown is 2, neither 0 nor 1", "row 4", "1 for rows that")),
    (of("seen", [1, 1, 1, None, 1, 1]), {"shown": "seen"}, ("shown is null", "row 4, column 'seen'")),
    (
        of("seen", [1, 0, 1, 1, 1, 1]),
        {"shown": "seen"},
        ("a row that was not shown has label 0 of task 'click'", "row 2, column 'click'", "leave the label empty"),
    ),
    (
        of("seen", [1, 1, 0, 1, 1, 1]),
        {"shown": "seen"},
        ("a row that was not shown has outcome 1 of action 'like'", "row 3, column 'like'", "correct 'seen'"),
    ),
    (of("click", [0, 0, None, 0, 0, 0]), {}, ("task 'click' has only label 0 in 5 observed rows", "both classes")),
    (of("click", [1] * 6), {}, ("task 'click' has only label 1 in 6 observed rows", "a test log")),
    (of("click", [None] * 6), {}, ("task 'click' has no observed label in 0 observed rows",)),
    ({name: [] for name in impressions()}, {}, ("the log has no impressions", "where: a test log", "check the path")),
    (
        impressions(),
        {"user_id": "user_di"},
        ("column 'user_di' is missing (did you mean 'user_id'?)", "row 1; columns"),
    ),
    (impressions(), {"tasks": {"buy": "bought"}}, ("column 'bought' is missing", "correct the column's name")),
]


@pytest.mark.parametrize(("columns", "schema", "expected"), BAD_VALUES)
def test_a_bad_value_is_refused_with_its_place(
    columns: dict[str, list[Any]], schema: dict[str, Any], expected: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as error:
        write_dataset(log(columns, **schema), tmp_path / "out")
    words(error, *expected)
    assert list(tmp_path.iterdir()) == [], "a failed import leaves nothing behind"


BAD_SCHEMAS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    (
        {"shown": "seen", "numeric": (RawNumeric("seen"),)},
        ("numeric feature 'seen'", "whether the row was shown", "only after"),
    ),
    (
        {"categorical": (RawCategorical("watch_time"),)},
        ("categorical feature 'watch_time'", "an outcome", "only after"),
    ),
    ({"categorical": (RawCategorical("x", "click"),)}, ("'x' reads column 'click'", "the label of task 'click'")),
    ({"numeric": (RawNumeric("liked", "like"),)}, ("numeric feature 'liked'", "the outcome of action 'like'")),
    ({"numeric": (RawNumeric("p"),), "truth": {"click": "p"}}, ("the true probability of task 'click'",)),
    ({"event_fields": {"watched": "watch_time"}}, ("event field 'watched' reads column 'watch_time'", "history_rates")),
    ({"position": "watch_time"}, ("position 'watch_time' reads column 'watch_time'",)),
    ({"tasks": {}}, ("the log has no task", "under `tasks`")),
    ({"item_id": ""}, ("the schema names no item_id column", "set item_id")),
    ({"numeric": (RawNumeric("a/b", "price"),)}, ("feature name 'a/b' cannot be used", "letters, digits")),
    ({"numeric": (*NUMERIC, RawNumeric("price", log1p=True))}, ("two features are named 'price'", "rename")),
    ({"categorical": (RawCategorical("genre", side="video"),)}, ("side 'video'", "user, item, context")),
    ({"keep_rates": {"clik": KeepRates(1, 0.5)}}, ("keep_rates names task 'clik'", "did you mean 'click'?")),
    ({"truth": {"clik": "p"}}, ("truth names task 'clik', which there is not (did you mean 'click'?)",)),
    ({"actions": {}}, ("history_rates needs a history, and the schema has no actions", "under `actions`")),
    ({"actions": {}, "history_rates": (), "event_fields": {"g": "genre"}}, ("event_fields needs a history",)),
    ({"actions": {f"a{i}": "like" for i in range(17)}, "history_rates": ()}, ("has 17 actions; 16 fit",)),
    ({"event_fields": {"time": "genre"}}, ("event field 'time' has a reserved name", "rename")),
    ({"history_rates": (HistoryRate("r", "clik"),)}, ("names action 'clik'", "did you mean 'click'?")),
    ({"history_rates": (HistoryRate("r", "click", 0.5, 0.0),)}, ("has prior_count 0.0", "above 0")),
    ({"history_rates": (HistoryRate("r", "click", float("nan")),)}, ("has prior_rate nan", "in [0, 1]")),
    ({"vocabulary_min_count": 0}, ("vocabulary_min_count is 0", "use 1 to keep every value")),
    ({"time_unit": "h"}, ("time_unit 'h' is unknown", "use s, ms or us")),
]


@pytest.mark.parametrize(("schema", "expected"), BAD_SCHEMAS)
def test_a_bad_schema_is_refused_before_the_log_is_read(
    schema: dict[str, Any], expected: tuple[str, ...], tmp_path: Path
) -> None:
    def never() -> Any:
        raise AssertionError("the log was read")

    with pytest.raises(DataError) as error:
        write_dataset(replace(log(**schema), impressions=never), tmp_path / "out")
    words(error, *expected, "schema of a test log")


def test_a_bad_extra_event_is_named(tmp_path: Path) -> None:
    events = impressions(user_id=["ann", None, "ann", "ann", "bob", "ann"])
    with pytest.raises(DataError) as error:
        write_dataset(log(events=events), tmp_path / "out")
    words(error, "user_id is null", "events of a test log, row 2, column 'user_id'")
    with pytest.raises(DataError) as error:
        write_dataset(log(events={"user_id": ["ann"], "item_id": [7], "event_time": [START]}), tmp_path / "out")
    words(error, "column 'click' is missing", "events of a test log, row 1")
    with pytest.raises(DataError) as error:
        write_dataset(log(events=events, actions={}, history_rates=()), tmp_path / "out")
    words(error, "extra events, and its schema has no actions", "give no events")


def test_batches_of_unequal_schema_are_refused(tmp_path: Path) -> None:
    whole = pa.table(impressions())
    parts = [*whole.to_batches(), *whole.cast(whole.schema.set(4, pa.field("price", pa.float32()))).to_batches()]
    with pytest.raises(DataError, match="record batches differ in price"):
        write_dataset(replace(log(), impressions=lambda: iter(parts)), tmp_path / "out")


def test_an_existing_directory_is_never_touched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(UsageError) as error:
        write_dataset(log(), out)
    words(error, "exists already", "choose another directory", "never touches")
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_of_two_imports_to_one_place_the_first_wins(tmp_path: Path) -> None:
    def slow() -> Any:
        write_dataset(log(), tmp_path / "out")
        yield from log().impressions()

    with pytest.raises(UsageError, match="exists already"):
        write_dataset(replace(log(), impressions=slow), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("limit", ["lots", "1GB'; DROP", ""])
def test_a_memory_limit_that_cannot_be_read(limit: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        write_dataset(log(), tmp_path / "out", memory_limit=limit)
    words(error, "cannot be read", "give a size such as 500MB")
    assert list(tmp_path.iterdir()) == []


def test_a_memory_limit_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        write_dataset(log(), tmp_path / "out", memory_limit="100KB")
    words(error, "does not fit into memory_limit '100KB'", "raise memory_limit")
    assert list(tmp_path.iterdir()) == []


def test_part_rows_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="part_rows is 0"):
        write_dataset(log(), tmp_path / "out", part_rows=0)


def test_an_error_of_the_importer_passes_and_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Any:
        yield from log().impressions()
        raise DataError("file 2 is torn", where="b.csv")

    with pytest.raises(DataError, match="file 2 is torn"):
        write_dataset(replace(log(), impressions=broken), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"config_digest": "x", "format": 1}')
    with pytest.raises(DataError, match=r"is a run directory, not a dataset\n.*\n  to do: give .*dataset"):
        ParquetSource(tmp_path)
