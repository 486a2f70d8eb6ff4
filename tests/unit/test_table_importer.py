"""The importer ``table``: typed values from text, and errors that an editor's user can act on."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import recdistill_core as rd
from recdistill_core.errors import ConfigError, DataError, RecdistillError, UsageError
from recdistill_core.interfaces import HistoryWindow
from recdistill_core.rawlog import HistoryRate, RawCategorical, RawNumeric, RawSchema
from recdistill_core.schema import KeepRates
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_writer import write_dataset
from recdistill_table import TableConfig, recdistill_importers
from recdistill_table.importer import TableImporter
from recdistill_table.schema_file import read_schema

HEAD = "user,item,ts,click,genre,price\n"
LINES = [
    "007,a,2024-01-31T10:00:00Z,1,rock,1.5\n",
    "7,b,2024-01-31 11:00:00,0,,2\n",
    "007,b,2024-01-31T13:00:00.250+01:00,,jazz, 3 \n",
    '7,"c,d",2024-01-31 13:00,1,rock,1e-1\n',
]
SCHEMA = """
tasks: {click: click}
user_id: user
item_id: item
event_time: ts
time_unit: iso
categorical: [genre, {name: item, side: item}]
numeric: [price]
actions: {click: click}
history_rates: [{name: rate, action: click, prior_rate: 0.1, prior_count: 2}]
"""
TEN = 1_706_695_200_000  # 2024-01-31T10:00:00Z


def importer(folder: Path, path: str = "log.csv", schema: str = SCHEMA) -> TableImporter:
    (folder / "schema.yaml").write_text(schema)
    return TableImporter(TableConfig(str(folder / path), str(folder / "schema.yaml")))


def imported(made: TableImporter, out: Path) -> ParquetSource:
    write_dataset(made.open(), out)
    return ParquetSource(out)


def refused(made: TableImporter, *expected: str, kind: type[RecdistillError] = DataError) -> None:
    """Open and read it all; the error's text holds every one of ``expected``."""

    def read_all() -> None:
        log = made.open()
        list(log.impressions())
        list(log.events() if log.events else [])

    with pytest.raises(kind) as error:
        read_all()
    for text in expected:
        assert text in str(error.value), f"{text!r} is not in:\n{error.value}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "log.csv").write_text(HEAD + "".join(LINES))
    return tmp_path


def test_csv_becomes_a_dataset(folder: Path) -> None:
    source = imported(importer(folder), folder / "out")
    batch = source.batch(np.arange(4), HistoryWindow(5, 1)).validate()
    hour = 3_600_000
    assert batch.event_time.tolist() == [TEN, TEN + hour, TEN + 2 * hour + 250, TEN + 3 * hour]
    assert batch.user_id.tolist() == [0, 1, 0, 1]  # "007" is not "7"
    assert source.users().column("user").to_pylist() == ["007", "7"]
    assert source.vocabulary("item").to_pylist() == [None, "a", "b", "c,d"]
    assert batch.categorical.tolist() == [[1, 1], [0, 2], [2, 2], [1, 3]]
    np.testing.assert_allclose(batch.numeric[:, 0], [1.5, 2.0, 3.0, 0.1], rtol=1e-6)
    np.testing.assert_allclose(batch.numeric[:, 1], [0.1, 0.1, 1.2 / 3, 0.2 / 3], rtol=1e-6)
    assert batch.observed["click"].tolist() == [True, True, False, True]
    assert source.manifest.facts == {"importer": "table", "files": ["log.csv"]}


def test_layouts_of_the_same_log_give_the_same_snapshot(folder: Path) -> None:
    """A file, a gzipped file, a folder, a glob, tabs, and other null values."""
    text = (folder / "log.csv").read_text()
    (folder / "log.csv.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "bom.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (folder / "log.tsv").write_text(
        (HEAD + "".join(LINES)).replace('"c,d"', "c;d").replace(",", "\t").replace("c;d", "c,d")
    )
    (folder / "nulls.csv").write_text(text.replace(",,", ",NULL,"))
    (folder / "parts").mkdir()
    for number, lines in enumerate((LINES[:1], LINES[1:])):
        (folder / "parts" / f"{number}.csv").write_text(HEAD + "".join(lines))
    (folder / "parts" / "notes.txt").write_text("not a log")
    ids = set()
    for number, path in enumerate(["log.csv", "log.csv.gz", "bom.csv", "log.tsv", "nulls.csv", "parts", "parts/*.csv"]):
        schema = SCHEMA + ("null_values: ['', 'NULL']\n" if path == "nulls.csv" else "")
        ids.add(imported(importer(folder, path, schema), folder / f"out{number}").snapshot_id)
    assert len(ids) == 1


def test_parquet_keeps_its_types(folder: Path) -> None:
    table = pa.table(
        {
            "user": [1, 2, 1],
            "item": ["a", "b", "b"],
            "ts": pa.array([TEN, TEN + 1, TEN + 2], pa.timestamp("ms", tz="Europe/Berlin")),
            "click": [True, False, None],
            "genre": pa.array(["x", None, "y"]).dictionary_encode(),
            "price": pa.array([1, 2, 3], pa.float32()),
        }
    )
    pq.write_table(table, folder / "log.parquet")
    log = importer(folder, "log.parquet").open()
    assert log.total == 3
    assert log.locate(1) == f"{folder / 'log.parquet'}, row 2"
    source = imported(importer(folder, "log.parquet"), folder / "out")
    assert source.column("event_time").tolist() == [TEN, TEN + 1, TEN + 2]
    assert source.users().column("user").to_pylist() == [1, 2]


def test_extra_events_from_a_file_beside_the_schema(folder: Path) -> None:
    (folder / "more.csv").write_text("ts,user,click,item,unused\n2024-01-31 09:00,007,1,z,?\n2024-01-31 10:00,7,,z,?\n")
    source = imported(importer(folder, schema=SCHEMA + "events: more.csv\n"), folder / "out")
    assert source.manifest.counts["events"] == 6
    batch = source.batch(np.arange(4), HistoryWindow(5, 1))
    assert batch.history is not None
    assert batch.history.row_end.tolist() == [1, 1, 2, 2]
    refused(importer(folder, schema=SCHEMA + "events: none.csv\n"), "no log was found", "none.csv", kind=UsageError)
    refused(
        importer(folder, schema=SCHEMA.replace("actions: {click: click}", "events: more.csv")),
        "extra events and no actions",
        "under `actions`",
    )


BAD_LINES = [
    ("007,a,2024-01-31T10:00,maybe,rock,1\n", ("'maybe' is not 0 or 1", "row 5 (line 7), column 'click'", "mend")),
    ("007,a,2024-01-31T10:00,1,rock,cheap\n", ("'cheap' is not a number", "log.csv, row 5 (line 7), column 'price'")),
    ("007,a,yesterday,1,rock,1\n", ("'yesterday' is not an ISO 8601 time", "row 5 (line 7), column 'ts'")),
    ("007,a,2024-01-31T10:00,1,rock\n", ("the row has 5 values, the header 6", "row 5 (line 7)", "needs quotes")),
    ("007,a,2024-01-31T10:00,1,ro,ck,2\n", ("the row has 7 values, the header 6: '007,a,", "row 5 (line 7)")),
]


@pytest.mark.parametrize(("line", "expected"), BAD_LINES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_bad_line_is_named(line: str, expected: tuple[str, ...], packed: bool, folder: Path) -> None:
    """An empty line before it is no row, and counts as a line."""
    text = HEAD + "".join(LINES) + "\n" + line + LINES[0]
    (folder / "log.csv").write_text(text)
    (folder / "log.csv.gz").write_bytes(gzip.compress(text.encode()))
    refused(importer(folder, "log.csv.gz" if packed else "log.csv"), *expected[:1], expected[1].replace("log.csv,", ""))
    refused(importer(folder), *expected)


def test_values_that_the_import_refuses_name_the_line_of_the_second_file(folder: Path) -> None:
    (folder / "log2.csv").write_text(HEAD + LINES[0] + LINES[1].replace(",0,", ",3,"))
    with pytest.raises(DataError) as error:
        write_dataset(importer(folder, "log*.csv").open(), folder / "out")
    assert f"{folder / 'log2.csv'}, row 2 (line 3), column 'click'" in str(error.value)
    with pytest.raises(DataError) as error:
        write_dataset(
            importer(folder, schema=SCHEMA + "time_ordered: true\nexample_id: price\n").open(), folder / "out"
        )
    assert "'1.5' is not a whole number" in str(error.value)


def test_time_ordered_is_a_promise(folder: Path) -> None:
    (folder / "log.csv").write_text(HEAD + "".join(LINES[::-1]))
    source = imported(importer(folder), folder / "sorted")
    assert source.column("example_id").tolist() == [3, 2, 1, 0]
    with pytest.raises(DataError) as error:
        write_dataset(importer(folder, schema=SCHEMA + "time_ordered: true\n").open(), folder / "out")
    assert "row 2 (line 3), column 'ts'" in str(error.value)


def test_files_that_cannot_be_read(folder: Path) -> None:
    refused(importer(folder, schema=SCHEMA.replace("genre,", "genr,")), "'genr' is missing (did you mean 'genre'?)")
    refused(importer(folder, schema=SCHEMA + "outcomes: [clicks]\n"), "'clicks' is missing (did you mean 'click'?)")
    (folder / "twice.csv").write_text("click," + HEAD + "1," + LINES[0])
    refused(importer(folder, "twice.csv"), "column 'click' occurs twice", "twice.csv", "the file's header")
    (folder / "empty.csv").write_text("")
    refused(importer(folder, "empty.csv"), "the file cannot be read: Empty CSV file", "empty.csv", "is complete")
    (folder / "latin.csv").write_bytes((HEAD + LINES[0].replace("rock", "r\xf6ck")).encode("latin1"))
    refused(importer(folder, "latin.csv"), "invalid UTF8 data", "latin.csv", "save the file as UTF-8")
    (folder / "torn.parquet").write_bytes(b"PAR1 torn")
    refused(importer(folder, "torn.parquet"), "the file cannot be read", "torn.parquet", "is complete")
    refused(importer(folder, "nowhere.csv"), "no log was found at", "files ending in .csv", kind=UsageError)
    refused(importer(folder, "*.xlsx"), "no log was found at", kind=UsageError)
    (folder / "odd.xlsx").write_text("")
    refused(importer(folder, "odd.xlsx"), "'odd.xlsx' is neither CSV nor Parquet", kind=UsageError)
    refused(importer(folder, "."), "CSV and Parquet files are mixed", "a glob such as", kind=UsageError)


def test_a_header_without_rows_is_an_empty_log(folder: Path) -> None:
    (folder / "log.csv").write_text(HEAD)
    with pytest.raises(DataError, match="the log has no impressions"):
        write_dataset(importer(folder).open(), folder / "out")


def test_the_whole_schema_file(tmp_path: Path) -> None:
    """The example of the package's docstring reads as it says."""
    import recdistill_table

    assert recdistill_table.__doc__ is not None
    example = recdistill_table.__doc__.split("default where there is one::")[1].split("CSV values keep")[0]
    (tmp_path / "schema.yaml").write_text(example)
    found = read_schema(tmp_path / "schema.yaml")
    assert found.raw == RawSchema(
        tasks={"click": "clicked"},
        categorical=(RawCategorical("country"), RawCategorical("genre", "item_genre", "item", "genre")),
        numeric=(RawNumeric("price", missing=0.0),),
        history_rates=(HistoryRate("click_rate", "click"),),
        actions={"click": "clicked"},
        event_fields={"genre": "item_genre"},
        outcomes=("watch_time",),
        keep_rates={"click": KeepRates(1.0, 0.1)},
        vocabulary_until=1_709_251_200_000,
    )
    assert found.events == tmp_path / "purchases.csv"
    assert (found.iso, found.delimiter, found.null_values) == (False, ",", ("",))


BAD_SCHEMA = """
taks: {click: click}
time_unit: hours
vocabulary_until: someday
vocabulary_min_count: few
delimiter: ", "
categorical: [{name: genre, sid: item}, {name: a, side: itm}]
numeric: price
history_rates: [{action: click}]
keep_rates: {click: {positive: 2, negative: 1}, like: 0.5}
"""


def test_all_faults_of_the_schema_file_are_reported_at_once(folder: Path) -> None:
    refused(
        importer(folder, schema=BAD_SCHEMA),
        "schema.yaml: taks: unknown key (did you mean 'tasks'?)",
        "schema.yaml: tasks: is required",
        "vocabulary_until: must be ms UTC or an ISO 8601 date, got 'someday'",
        "vocabulary_min_count: Value 'few'",
        "categorical[0].sid: unknown key (did you mean 'side'?)",
        "numeric: must be a list, got 'price'",
        "history_rates[0].name: is required",
        "keep_rates.click: keep rate of positive rows must lie in (0, 1], got 2",
        "keep_rates.like: must be a mapping",
        kind=ConfigError,
    )
    right = {"tasks": "tasks: {}\n", "unit": "time_unit: hours\n", "comma": 'delimiter: ", "\n'}
    refused(
        importer(folder, schema="".join(right.values()) + "categorical: [{name: a, side: itm}]\nkeep_rates: [1]\n"),
        "tasks: must name at least one task",
        "time_unit: must be one of s, ms, us, iso, got 'hours'",
        "delimiter: must be one character",
        "categorical[0].side: must be one of user, item, context, got 'itm' (did you mean 'item'?)",
        "keep_rates: must map a task to",
        kind=ConfigError,
    )
    refused(importer(folder, schema="tasks: ["), "not valid YAML", kind=UsageError)


def test_numbers_and_times_in_other_units(folder: Path) -> None:
    rows: list[tuple[Any, ...]] = [(1, 9, 1_700_000_000.25, "true", 3), (2, 9, 1_700_000_001, "False", "4.0")]
    text = "user,item,ts,click,rank\n" + "".join(",".join(str(value) for value in row) + "\n" for row in rows)
    (folder / "log.csv").write_text(text)
    schema = "tasks: {click: click}\nuser_id: user\nitem_id: item\nevent_time: ts\ntime_unit: s\nposition: rank\n"
    source = imported(importer(folder, schema=schema), folder / "out")
    assert source.column("event_time").tolist() == [1_700_000_000_250, 1_700_000_001_000]
    assert source.column("position").tolist() == [3, 4]
    assert source.column("label_click").tolist() == [1, 0]


def test_the_component(folder: Path) -> None:
    component = recdistill_importers()[0]
    importer(folder)
    made = component.build(TableConfig(str(folder / "log.csv"), str(folder / "schema.yaml")), rd.BuildContext())
    assert made.open().origin == str(folder / "log.csv")
    with pytest.raises(ValueError, match="path must name a file, a folder or a glob"):
        TableConfig("", "schema.yaml")
    with pytest.raises(ValueError, match="schema must name a YAML file"):
        TableConfig("log.csv", "")
