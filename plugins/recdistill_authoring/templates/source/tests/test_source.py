import numpy as np
import pytest

from recdistill_myplugin import MyPluginConfig, example
from recdistill_myplugin.source import MyPluginSource


@pytest.fixture
def source(tmp_path):
    return MyPluginSource(MyPluginConfig(**{**example(tmp_path), "rows": 50}))


def test_it_ends_after_its_rows(source):
    assert source.num_rows == 50
    assert source.whole.num_rows > 50
    assert len(source.column("event_time")) == len(source.truth("click")) == 50
    assert source.row_at(int(source.whole.column("event_time")[60])) == 50
    with pytest.raises(IndexError, match="there are rows 0 to 49"):
        source.batch(np.array([50]))


def test_its_rows_are_those_of_the_dataset(source):
    rows = np.array([7, 3])
    assert source.batch(rows).example_id.tolist() == source.whole.column("example_id")[rows].tolist()


def test_another_number_of_rows_is_another_snapshot(source):
    fewer = MyPluginSource(MyPluginConfig(str(source.whole.path), rows=49))
    assert fewer.snapshot_id != source.snapshot_id


def test_settings_have_ranges():
    with pytest.raises(ValueError, match="path must name a dataset folder"):
        MyPluginConfig("")
    with pytest.raises(ValueError, match="rows must be >= 1, got 0"):
        MyPluginConfig("dataset", rows=0)
