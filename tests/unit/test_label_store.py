"""The Parquet label store: exact in any order, one label per example and version."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_store_cases import filled, open_writer, put, read, segments

from recdistill_core.errors import LeakError
from recdistill_core.interfaces import CaptureMode, LabelVersion
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_writer import IdSet


def test_round_trip_keeps_order_and_reports_missing(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path)
    with open_writer(store, tasks=("click", "like")) as writer:
        ids = torch.tensor([5, -3, 2**62])
        writer.append(ids, {"like": torch.tensor([0.1, 0.2, 0.3]), "click": torch.ones(3)}, step=4, scored_at=99)
        assert writer.commit() == LabelVersion("v1", CaptureMode.PREQUENTIAL, ("click", "like"), "view", 3, {"seed": 1})
    signal = ParquetLogitStore(tmp_path).read("v1", np.array([2**62, 4, 5, 5]))
    assert signal.version == "v1"
    assert signal.valid["like"].tolist() == [True, False, True, True]
    assert torch.equal(signal.logits["like"], torch.tensor([0.3, 0.0, 0.1, 0.1]))
    assert signal.logits["like"].dtype == torch.float32
    assert signal.scored_at is not None
    assert signal.scored_at.tolist() == [99, 0, 99, 99]


def test_read_of_no_rows_and_of_an_absent_store(tmp_path: Path) -> None:
    assert read(filled(tmp_path / "a"), []) == ([], [])
    absent = ParquetLogitStore(tmp_path / "b")
    assert absent.versions() == ()
    assert not (tmp_path / "b").exists()
    assert absent.snapshot_id() != filled(tmp_path / "c").snapshot_id()


@settings(max_examples=40, deadline=None)
@given(
    values=st.dictionaries(
        st.integers(-(2**63), 2**63 - 1), st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=60
    ),
    wanted=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
    segment_rows=st.integers(1, 20),
    cuts=st.lists(st.integers(1, 15), min_size=1, max_size=10),
    data=st.data(),
)
def test_any_ids_in_any_order_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    values: dict[int, float],
    wanted: list[int],
    segment_rows: int,
    cuts: list[int],
    data: st.DataObject,
) -> None:
    store = ParquetLogitStore(tmp_path_factory.mktemp("store"), segment_rows)
    left = list(values)
    with open_writer(store) as writer:
        put(writer, [2**63 - 1] if not values else [])
        for cut in cuts * 60:
            put(writer, left[:cut], [values[key] for key in left[:cut]])
            left = left[cut:]
            if not left:
                break
        writer.commit()
    if not values:
        return
    ask = data.draw(st.permutations(list(values) * 2)) + wanted
    signal = store.read("v1", np.array(ask, np.int64))
    expected = np.array([values.get(key, 0.0) for key in ask], np.float32)
    assert signal.logits["click"].numpy().tobytes() == expected.tobytes()
    assert signal.valid["click"].tolist() == [key in values for key in ask]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(-50, 50), max_size=12), max_size=20), st.lists(st.integers(-60, 60), max_size=30))
def test_id_set_is_a_set(batches: list[set[int]], wanted: list[int]) -> None:
    ids, model = IdSet(), set[int]()
    for batch in batches:
        ids.add(np.array(sorted(batch - model, reverse=True), np.int64))
        model |= batch
    assert len(ids) == len(model)
    assert ids.known(np.array(wanted, np.int64)).tolist() == [key in model for key in wanted]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), max_size=8), max_size=8), st.integers(1, 9))
def test_a_second_label_is_refused_and_adds_nothing(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], segment_rows: int
) -> None:
    store = ParquetLogitStore(tmp_path_factory.mktemp("store"), segment_rows)
    model: set[int] = {99}
    with open_writer(store) as writer:
        put(writer, [99])
        for batch in batches:
            if len(set(batch)) < len(batch) or model & set(batch):
                with pytest.raises(LeakError):
                    put(writer, batch)
            else:
                put(writer, batch)
                model |= set(batch)
        assert writer.commit().count == len(model)
    everything = np.arange(100)
    assert np.flatnonzero(store.read("v1", everything).valid["click"].numpy()).tolist() == sorted(model)


def test_snapshot_is_reproducible(tmp_path: Path) -> None:
    assert filled(tmp_path / "a").snapshot_id() == filled(tmp_path / "b").snapshot_id()


def test_segments_are_checksummed_and_say_whose_they_are(tmp_path: Path) -> None:
    filled(tmp_path)
    file = pq.ParquetFile(segments(tmp_path)[0], page_checksum_verification=True)
    assert {name: file.schema_arrow.field(name).type for name in file.schema_arrow.names} == {
        "example_id": "int64",
        "logit_click": "float",
        "step": "int64",
        "scored_at": "int64",
    }
    metadata = file.schema_arrow.metadata
    assert metadata[b"recdistill.version"] == b"v1"
    assert metadata[b"recdistill.mode"] == b"prequential"
    assert metadata[b"recdistill.view"] == b"view"
    assert file.metadata.row_group(0).column(1).compression == "ZSTD"
    assert file.read(columns=["step"])["step"].to_pylist() == [7, 7, 7]
    file.close()


def test_another_version_may_label_the_same_example(tmp_path: Path) -> None:
    store = filled(tmp_path, [1, 2])
    with open_writer(store, "v2", mode=CaptureMode.LEAKY) as writer:
        put(writer, [2], [4.0])
        writer.commit()
    assert [(entry.version, entry.mode.value, entry.count) for entry in store.versions()] == [
        ("v1", "prequential", 2),
        ("v2", "leaky", 1),
    ]
    assert read(store, [1, 2], "v1")[0] == [0.125, 0.25]
    assert read(store, [1, 2], "v2") == ([0.0, 4.0], [False, True])


def test_half_precision_and_gradients_are_taken(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path)
    with open_writer(store) as writer:
        logit = torch.tensor([1.5, 2.5], dtype=torch.bfloat16, requires_grad=True)
        writer.append(torch.arange(2), {"click": logit}, step=1, scored_at=0)
        writer.commit()
    assert read(store, [0, 1])[0] == [1.5, 2.5]


def test_what_was_appended_may_change_afterwards(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path)
    ids, logits = torch.arange(2), torch.ones(2)
    with open_writer(store) as writer:
        writer.append(ids, {"click": logits}, step=1, scored_at=0)
        ids += 10
        logits += 10
        writer.commit()
    assert read(store, [0, 1]) == ([1.0, 1.0], [True, True])


def test_a_store_travels_to_worker_processes(tmp_path: Path) -> None:
    store = filled(tmp_path, segment_rows=77)
    read(store, [1])
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.path, copy.segment_rows) == (tmp_path, 77)
    assert read(copy, [5])[1] == [True]


def test_a_store_that_was_made_anew_is_read_anew(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", [1, 2])
    assert read(store, [1, 7])[1] == [True, False]
    shutil.rmtree(tmp_path / "s")
    filled(tmp_path / "s", [7, 8])
    assert read(store, [1, 7]) == ([0.0, 0.875], [False, True])
