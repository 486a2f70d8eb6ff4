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
from recdistill_parquet.labels_index import KeyIndex
from recdistill_parquet.labels_keys import KeyTable, digest_rows
from recdistill_parquet.labels_limits import Limits


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
    values=st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.floats(-40, 40, width=32), max_size=60),
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


def _mix(number: int) -> int:
    """A digest that is another one for every id."""
    return (number * 2654435761) % 2**63


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(-50, 50), max_size=12), max_size=20), st.lists(st.integers(-60, 60), max_size=30))
def test_key_table_is_a_dictionary(batches: list[set[int]], wanted: list[int]) -> None:
    table, model = KeyTable(), dict[int, int]()
    for batch in batches:
        ids = np.array(sorted(batch - set(model), reverse=True), np.int64)
        table.add(ids, np.array([_mix(key) for key in ids.tolist()], np.uint64))
        model |= {key: _mix(key) for key in batch}
    assert len(table) == len(model)
    known, digests = table.find(np.array(wanted, np.int64))
    assert known.tolist() == [key in model for key in wanted]
    assert digests[known].tolist() == [model[key] for key in wanted if key in model]


_IDS = st.one_of(st.integers(-20, 20), st.integers(-(2**63), 2**63 - 1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sets(_IDS, max_size=30), max_size=12), st.lists(_IDS, max_size=40))
def test_index_is_a_dictionary_and_names_doubles(batches: list[set[int]], wanted: list[int]) -> None:
    index, model = KeyIndex(2), dict[int, int]()
    for batch in batches:
        fresh = sorted(batch - set(model))
        rows = np.array([[key, _mix(key)] for key in fresh], np.int64).reshape(-1, 2)
        assert index.add(rows).size == 0
        model |= {key: _mix(key) for key in fresh}
    assert len(index) == len(model)
    asked = [*model, *wanted]
    known, rows = index.find(np.array(asked, np.int64))
    assert known.tolist() == [key in model for key in asked]
    assert rows[known].tolist() == [[key, model[key]] for key in asked if key in model]
    for twice in list(model)[:1]:
        assert index.add(np.array([[twice, 0]], np.int64)).tolist() == [twice]


def test_index_names_doubles_within_one_call() -> None:
    assert KeyIndex(1).add(np.array([[3], [1], [3], [1], [2]], np.int64)).tolist() == [1, 3]


def test_index_finds_ids_in_more_chunks_than_one_and_of_one_bucket() -> None:
    ids = np.arange(50_000, dtype=np.int64) * 2**40  # a plain hash by low bits would put all of them into one bucket
    index = KeyIndex(2)
    index.add(np.stack([ids, ids // 7], axis=1))
    known, rows = index.find(np.concatenate([ids[::-1], ids + 1]))
    assert known.tolist() == [True] * ids.size + [False] * ids.size
    assert np.array_equal(rows[: ids.size, 1], ids[::-1] // 7)


@pytest.mark.parametrize("tasks", [1, 2, 3, 5])
def test_digests_tell_rows_apart(tasks: int) -> None:
    values = np.random.default_rng(0).normal(size=(1000, tasks)).astype(np.float32)
    names = [f"logit_{place}" for place in range(tasks)]
    columns = {name: values[:, place].copy() for place, name in enumerate(names)}
    first = digest_rows(columns, names)
    assert np.unique(first).size == 1000
    for name in names:
        changed = {**columns, name: np.nextafter(columns[name], np.float32(99))}
        assert not (digest_rows(changed, names) == first).any()
    if tasks > 1:
        assert not (digest_rows(columns, names[::-1]) == first).any()
    zeros = {name: np.array([0.0, -0.0], np.float32) for name in names}
    assert np.unique(digest_rows(zeros, names)).size == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=8), max_size=8), st.integers(1, 9))
def test_each_label_is_written_once(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, bool]]], segment_rows: int
) -> None:
    """A batch with another label than the first one is refused whole, and equal second labels are dropped."""
    store = ParquetLogitStore(tmp_path_factory.mktemp("store"), segment_rows)
    model, dropped = {99: 1.0}, 0
    with open_writer(store) as writer:
        put(writer, [99], [1.0])
        for batch in batches:
            ids, logits = [key for key, _ in batch], [1.0 if same else 2.0 for _, same in batch]
            after, conflict = dict(model), False
            for key, logit in zip(ids, logits, strict=True):
                conflict |= after.setdefault(key, logit) != logit
            if conflict:
                with pytest.raises(LeakError):
                    put(writer, ids, logits)
            else:
                put(writer, ids, logits)
                dropped += len(ids) - (len(after) - len(model))
                model = after
            assert writer.counts == {"appended": len(model), "duplicates": dropped, "quarantined": 0}
        made = writer.commit()
    assert (made.count, made.duplicates) == (len(model), dropped)
    signal = store.read("v1", np.arange(100))
    assert np.flatnonzero(signal.valid["click"].numpy()).tolist() == sorted(model)
    assert signal.logits["click"][sorted(model)].tolist() == [model[key] for key in sorted(model)]


def test_a_million_second_deliveries_leave_one_label_each(tmp_path: Path) -> None:
    store = filled(tmp_path, range(1000))
    with open_writer(store) as writer:
        for _ in range(5):
            put(writer, np.tile(np.arange(1000), 200))
        assert writer.commit().duplicates == 1_000_000
    assert store.versions()[0].count == 1000
    assert read(store, range(1001)) == ([key % 256 / 8 for key in range(1000)] + [0.0], [True] * 1000 + [False])


def test_snapshot_names_what_was_committed(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "a"), filled(tmp_path / "b")
    assert one.snapshot_id() == ParquetLogitStore(tmp_path / "a").snapshot_id()
    assert one.snapshot_id() != two.snapshot_id()  # committed at another time: another commit


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
    store = filled(tmp_path, segment_rows=77, limits=Limits(max_drift=0.5))
    read(store, [1])
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.path, copy.segment_rows, copy.limits) == (tmp_path, 77, Limits(max_drift=0.5))
    assert read(copy, [5])[1] == [True]
    with open_writer(store) as writer:
        put(writer, [6])
        writer.commit()
    pinned = pickle.loads(pickle.dumps(store.at(store.log()[0]["id"])))
    assert read(pinned, [5, 6])[1] == [True, False]


def test_a_store_that_was_made_anew_is_read_anew(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", [1, 2])
    assert read(store, [1, 7])[1] == [True, False]
    shutil.rmtree(tmp_path / "s")
    filled(tmp_path / "s", [7, 8])
    assert read(store, [1, 7]) == ([0.0, 0.875], [False, True])
