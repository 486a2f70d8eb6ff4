import sqlite3

import numpy as np
import pytest
import torch
from recdistill_core.errors import DataError, IntegrityError, LeakError
from recdistill_core.interfaces import CaptureMode

from recdistill_myplugin import MyPluginConfig
from recdistill_myplugin.store import MyPluginStore


@pytest.fixture
def store(tmp_path):
    return MyPluginStore(MyPluginConfig(str(tmp_path / "labels")))


def writer(store, mode=CaptureMode.PREQUENTIAL):
    return store.writer("v1", tasks=["click", "like"], mode=mode, view="view", facts={"seed": 1})


def append(writer, ids, offset=0.0):
    ids = torch.tensor(ids)
    writer.append(ids, {"click": ids + 0.5 + offset, "like": -ids.float()}, step=0, scored_at=7)


def test_labels_come_back_in_the_order_asked_for(store):
    first = writer(store)
    append(first, [5, 3])
    assert store.versions() == ()
    assert first.commit().count == 2
    signal = store.read("v1", np.array([3, 4, 5]))
    assert signal.logits["click"].tolist() == [3.5, 0.0, 5.5]
    assert signal.logits["like"].tolist() == [-3.0, 0.0, -5.0]
    assert signal.valid["like"].tolist() == [True, False, True]


def test_of_two_writers_of_one_example_the_second_is_refused(store):
    first, second = writer(store), writer(store)
    append(first, [1])
    append(second, [2, 1], offset=9.0)
    first.commit()
    with pytest.raises(LeakError, match="another writer has labelled one of the examples"):
        second.commit()
    assert [entry.count for entry in store.versions()] == [1]
    assert store.read("v1", np.array([1, 2])).logits["click"].tolist() == [1.5, 0.0]


def test_what_would_leak_or_mislead_is_refused(store):
    first = writer(store)
    append(first, [1])
    append(first, [1])  # a label that is delivered twice does no harm
    with pytest.raises(LeakError, match="example 1 already has another label of version 'v1'"):
        append(first, [2, 1], offset=9.0)
    with pytest.raises(DataError, match="a logit is NaN or infinite"):
        append(first, [3], offset=float("nan"))
    with pytest.raises(DataError, match="give logits of exactly these tasks: click, like"):
        first.append(torch.tensor([4]), {"click": torch.zeros(1)}, step=0, scored_at=0)
    first.commit()
    with pytest.raises(LeakError, match="version 'v1' holds prequential labels"):
        writer(store, CaptureMode.LEAKY)
    with pytest.raises(IntegrityError, match="version 'v1' has other tasks or another view"):
        store.writer("v1", tasks=["click"], mode=CaptureMode.PREQUENTIAL, view="view", facts={})
    with pytest.raises(DataError, match="the label store has no version 'v2'"):
        store.read("v2", np.array([1]))


def test_a_version_without_labels_cannot_be_committed(store):
    with pytest.raises(DataError, match="a version without any label cannot be committed"):
        writer(store).commit()


def test_a_damaged_file_is_named(store):
    store.file.parent.mkdir()
    store.file.write_text("no database, but long enough to look at" * 100)
    with pytest.raises(IntegrityError, match="the label store cannot be used: ") as caught:
        store.versions()
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)


def test_settings_have_ranges():
    with pytest.raises(ValueError, match="path must name a folder"):
        MyPluginConfig("")
    with pytest.raises(ValueError, match="timeout must be > 0, got 0"):
        MyPluginConfig("labels", timeout=0)
