import json

import numpy as np
import pytest
from recdistill_core.errors import DataError
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_writer import write_dataset

from recdistill_myplugin import MyPluginConfig
from recdistill_myplugin.importer import MyPluginImporter

ROWS = [
    {"user": 1, "item": "a", "ts": 1_700_000_001, "click": 1},
    {"user": 2, "item": "b", "ts": 1_700_000_000, "click": 0},
    {"user": 1, "item": "b", "ts": 1_700_000_002},
]


def importer(tmp_path, *lines):
    (tmp_path / "log.jsonl").write_text("".join(f"{line}\n" for line in lines))
    config = MyPluginConfig(str(tmp_path / "log.jsonl"), batch_rows=2)
    return MyPluginImporter(config)


def test_a_log_becomes_a_dataset_in_time_order(tmp_path):
    write_dataset(importer(tmp_path, *map(json.dumps, ROWS)).open(), tmp_path / "dataset")
    source = ParquetSource(tmp_path / "dataset")
    assert source.column("event_time").tolist() == [1_700_000_000_000, 1_700_000_001_000, 1_700_000_002_000]
    assert np.array_equal(source.column("label_click"), [0.0, 1.0, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "this is no JSON: .*\n.*log.jsonl, line 3"),
        ("[]", "a line must hold a JSON object\n.*log.jsonl, line 3"),
        ('{"user": "x"}', "a value has the wrong type: .*\n.*log.jsonl, lines 3 to 3"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    opened = importer(tmp_path, *map(json.dumps, ROWS[:2]), line).open()
    with pytest.raises(DataError, match=message):
        list(opened.impressions())


def test_a_log_that_is_absent_is_named(tmp_path):
    with pytest.raises(DataError, match="there is no such log"):
        MyPluginImporter(MyPluginConfig(str(tmp_path / "none.jsonl"))).open()


def test_settings_have_ranges():
    with pytest.raises(ValueError, match="path must name a file"):
        MyPluginConfig("")
    with pytest.raises(ValueError, match="batch_rows must be >= 1, got 0"):
        MyPluginConfig("log.jsonl", batch_rows=0)
