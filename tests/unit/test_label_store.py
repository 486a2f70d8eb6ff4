"""The Parquet label store: exact, all or nothing, one label per example and version, loud about damage."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill_core.errors import DataError, IntegrityError, LeakError, RecdistillError, UsageError
from recdistill_core.interfaces import CaptureMode, LabelVersion
from recdistill_parquet import labels_manifest, labels_writer
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_writer import IdSet, ParquetLabelWriter


def open_writer(store: ParquetLogitStore, version: str = "v1", **changes: Any) -> ParquetLabelWriter:
    given_ = {"tasks": ("click",), "mode": CaptureMode.PREQUENTIAL, "view": "view", "facts": {"seed": 1}}
    return store.writer(version, **{**given_, **changes})


def put(writer: ParquetLabelWriter, ids: Any, logits: Any = None, step: int = 7, task: str = "click") -> None:
    example_id = torch.as_tensor(ids, dtype=torch.int64)
    values = example_id.to(torch.float32) / 8 if logits is None else torch.as_tensor(logits, dtype=torch.float32)
    writer.append(example_id, {task: values}, step=step, scored_at=1_700_000_000_000 + step)


def filled(path: Path, ids: Any = (5, 3, 9), **options: Any) -> ParquetLogitStore:
    store = ParquetLogitStore(path, **options)
    with open_writer(store) as writer:
        put(writer, list(ids))
        writer.commit()
    return store


def segments(path: Path) -> list[Path]:
    return sorted((path / "segments").glob("*"))


def read(store: ParquetLogitStore, ids: Any, version: str = "v1") -> tuple[list[float], list[bool]]:
    signal = store.read(version, np.asarray(ids, np.int64))
    return signal.logits["click"].tolist(), signal.valid["click"].tolist()


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


def test_nothing_is_visible_before_commit(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path, segment_rows=2)
    writer = open_writer(store)
    put(writer, [1, 2, 3, 4, 5])
    assert len(segments(tmp_path)) == 2  # spilled, but in no manifest
    assert store.versions() == ()
    with pytest.raises(DataError, match="has no version 'v1'"):
        store.read("v1", np.array([1]))
    before = store.snapshot_id()
    writer.commit()
    assert read(store, [5, 1]) == ([0.625, 0.125], [True, True])
    assert store.snapshot_id() != before


def test_a_crash_before_commit_leaves_nothing_behind_for_readers(tmp_path: Path) -> None:
    lost = open_writer(ParquetLogitStore(tmp_path, segment_rows=2))
    put(lost, [1, 2, 3, 4])
    del lost  # a killed process: no commit, no abort
    left = segments(tmp_path)
    assert len(left) == 2
    store = ParquetLogitStore(tmp_path, segment_rows=2)
    assert store.versions() == ()
    with open_writer(store) as writer:
        put(writer, [1, 2], [0.5, 0.25])
        assert writer.commit().count == 2
    assert read(store, [1, 2, 3]) == ([0.5, 0.25, 0.0], [True, True, False])
    assert left[0].name == "v1-000000.parquet"
    assert segments(tmp_path)[2].name == "v1-000002.parquet"  # the left-overs were neither read nor overwritten


@pytest.mark.parametrize("end", ["abort", "close"])
def test_abort_and_close_remove_uncommitted_segments_only(tmp_path: Path, end: str) -> None:
    store = ParquetLogitStore(tmp_path, segment_rows=2)
    writer = open_writer(store)
    put(writer, [1, 2])
    writer.commit()
    put(writer, [3, 4, 5])
    assert len(segments(tmp_path)) == 2
    getattr(writer, end)()
    assert [path.name for path in segments(tmp_path)] == ["v1-000000.parquet"]
    if end == "abort":
        put(writer, [3])
        assert writer.commit().count == 3
    else:
        with pytest.raises(UsageError, match="the label writer is closed"):
            put(writer, [3])
        with pytest.raises(UsageError, match="the label writer is closed"):
            writer.commit()


def test_an_exception_in_the_capture_loop_forgets_its_labels(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path, segment_rows=1)

    def capture() -> None:
        with open_writer(store) as writer:
            put(writer, [1, 2])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        capture()
    assert segments(tmp_path) == []


def test_several_commits_add_up_and_readers_follow(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path)
    reader = ParquetLogitStore(tmp_path)
    seen = []
    with open_writer(store) as writer:
        for start in (10, 0, 5):
            put(writer, range(start, start + 5))
            writer.commit()
            seen.append(reader.snapshot_id())
            assert sum(read(reader, range(15))[1]) == 5 * len(seen)
    assert len(set(seen)) == 3
    assert read(reader, range(15))[0] == [key / 8 for key in range(15)]
    assert reader.versions()[0].count == 15


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


def test_leak_message_names_example_version_and_counts(tmp_path: Path) -> None:
    store = filled(tmp_path, [1, 2, 3])
    writer = open_writer(store)
    put(writer, [10, 11])
    with pytest.raises(LeakError) as caught:
        put(writer, [20, 11, 2, 3, 20], step=8)
    assert str(caught.value) == (
        "example 11 already has a label of version 'v1' (4 of 5 appended examples: 2 committed before, 1 pending, "
        "1 twice in this call)\n"
        f"  where: {tmp_path}, step 8\n"
        "  to do: score every example once, before the teacher trains on it; a teacher that makes a second pass needs "
        "a version of its own"
    )
    assert caught.value.exit_code == 5
    put(writer, [20])
    assert writer.commit().count == 6


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


def test_two_writers_interleaved_are_merged(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path, segment_rows=2)
    one, two = open_writer(store, facts={"rank": 0, "seed": 1}), open_writer(store, facts={"rank": 1})
    for start in range(0, 12, 4):
        put(one, [start, start + 1])
        put(two, [start + 2, start + 3])
    assert one.commit().count == 6
    assert two.commit() == LabelVersion("v1", CaptureMode.PREQUENTIAL, ("click",), "view", 12, {"rank": 1, "seed": 1})
    assert read(store, range(12)) == ([key / 8 for key in range(12)], [True] * 12)
    with pytest.raises(LeakError, match=r"example 2 already .* 1 committed before"):
        put(one, [2]) if one.commit() else None


def test_two_writers_of_one_example_the_later_commit_is_refused(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path)
    one, two = open_writer(store), open_writer(store)
    put(one, [1, 2, 3])
    put(two, [4, 3, 2])
    one.commit()
    before = store.snapshot_id()
    for _ in range(2):
        with pytest.raises(
            LeakError, match=r"example 2 already has a label of version 'v1' \(2 of 3 pending examples were committed"
        ):
            two.commit()
    assert store.snapshot_id() == before
    two.close()
    assert len(segments(tmp_path)) == 1
    assert read(store, [1, 2, 3, 4])[1] == [True, True, True, False]


def test_two_writers_of_two_versions(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path)
    one, two = open_writer(store, "a"), open_writer(store, "b")
    put(one, [1])
    put(two, [1])
    two.commit()
    one.commit()
    assert [entry.version for entry in store.versions()] == ["b", "a"]


def test_modes_tasks_and_views_do_not_mix(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(LeakError, match="version 'v1' holds prequential labels; leaky ones cannot join them"):
        open_writer(store, mode=CaptureMode.LEAKY)
    with pytest.raises(IntegrityError, match=r"version 'v1' has tasks \('click',\); the writer has \('like',\)"):
        open_writer(store, tasks=("like",))
    with pytest.raises(IntegrityError, match="version 'v1' has view 'view'; the writer has 'other'"):
        open_writer(store, view="other")


def test_modes_do_not_mix_between_open_and_commit(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path)
    one, two = open_writer(store), open_writer(store, mode=CaptureMode.LEAKY)
    put(one, [1])
    put(two, [2])
    one.commit()
    with pytest.raises(LeakError, match="cannot join them"):
        two.commit()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e39])
def test_non_finite_logits_are_refused_whole(tmp_path: Path, bad: float) -> None:
    store = ParquetLogitStore(tmp_path)
    writer = open_writer(store)
    values = torch.tensor([0.0, bad, bad, 1.0], dtype=torch.float64)
    with pytest.raises(DataError) as caught:
        writer.append(torch.arange(4), {"click": values}, step=31, scored_at=0)
    assert "2 of 4 logits of task 'click' are NaN or infinite, the first one of example 1" in str(caught.value)
    assert "step 31" in str(caught.value)
    assert "go back to its last good checkpoint" in str(caught.value)
    put(writer, [0, 1])  # the good rows of the refused call are not pending
    assert writer.commit().count == 2


@pytest.mark.parametrize(
    ("ids", "logits", "message"),
    [
        (
            torch.zeros(2, dtype=torch.int32),
            {"click": torch.zeros(2)},
            r"example_id must be \[N\] int64, got \[2\] int32",
        ),
        (torch.zeros(2, 1, dtype=torch.int64), {"click": torch.zeros(2)}, r"must be \[N\] int64, got \[2, 1\] int64"),
        (torch.arange(2), {}, "no logits were given for task 'click'"),
        (
            torch.arange(2),
            {"click": torch.zeros(2), "clik": torch.zeros(2)},
            r"logits were given for task 'clik' \(did you mean 'click'\?\)(.|\n)*exactly these tasks: click",
        ),
        (torch.arange(2), {"click": torch.zeros(3)}, r"logits of task 'click' must be \[2\] floats, got \[3\] float32"),
        (torch.arange(2), {"click": torch.arange(2)}, r"task 'click' must be \[2\] floats, got \[2\] int64"),
    ],
)
def test_wrong_columns_are_refused(
    tmp_path: Path, ids: torch.Tensor, logits: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_writer(ParquetLogitStore(tmp_path)).append(ids, logits, step=1, scored_at=0)


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


@pytest.mark.parametrize("version", ["", "../x", "a/b", "a.b", "-a", "_a", "ä", "a b", "a\n", "x" * 129])
def test_versions_that_are_no_file_names_are_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(UsageError, match="is not usable: 1 to 128 letters, digits"):
        open_writer(ParquetLogitStore(tmp_path / "s"), version)
    assert not (tmp_path / "s").exists()


def test_wrong_use_is_named(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path)
    with pytest.raises(UsageError, match=r"distinct tasks, at least one, got \[\]"):
        open_writer(store, tasks=())
    with pytest.raises(UsageError, match=r"distinct tasks, at least one, got \['a', 'a'\]"):
        open_writer(store, tasks=("a", "a"))
    with pytest.raises(UsageError, match="the facts of version 'v1' are not JSON"):
        open_writer(store, facts={"x": object()})
    with pytest.raises(UsageError, match="segment_rows must be at least 1, got 0"):
        ParquetLogitStore(tmp_path, 0)
    with pytest.raises(DataError, match="version 'v1' would be committed without any label"):
        open_writer(store).commit()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="the label store is a file, not a directory"):
        open_writer(ParquetLogitStore(tmp_path / "file"))
    with pytest.raises(UsageError, match="the label store is a file, not a directory"):
        ParquetLogitStore(tmp_path / "file").versions()


def test_a_commit_with_nothing_new_is_fine(tmp_path: Path) -> None:
    store = filled(tmp_path, [1])
    before = store.snapshot_id()
    assert open_writer(store).commit().count == 1
    assert store.snapshot_id() == before


def test_unknown_version_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        filled(tmp_path).read("v2", np.array([1]))
    assert str(caught.value) == (
        "the label store has no version 'v2' (did you mean 'v1'?)\n"
        f"  where: {tmp_path}; versions: v1\n"
        "  to do: name a version that is there, or capture the teacher's labels first"
    )
    with pytest.raises(DataError, match="the store is empty"):
        ParquetLogitStore(tmp_path / "none").read("v2", np.array([1]))


@pytest.mark.parametrize("ids", [np.array([1.0]), np.array([[1]])])
def test_read_wants_a_vector_of_ids(tmp_path: Path, ids: Any) -> None:
    with pytest.raises(DataError, match=r"example_id must be \[M\] int64, got"):
        filled(tmp_path).read("v1", ids)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "does not match its sha256 in the manifest: its bytes were altered"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), r"has \d+ bytes, the manifest says \d+"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_damaged_segments_are_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    filled(tmp_path)
    path = segments(tmp_path)[0]
    damage(path)
    for use in (lambda store: store.read("v1", np.array([1])), open_writer):
        with pytest.raises(IntegrityError, match=f"a committed segment of the label store {message}") as caught:
            use(ParquetLogitStore(tmp_path))
        assert str(path) in str(caught.value)
        assert "restore the file from a backup" in str(caught.value)


def test_a_segment_that_vanishes_after_it_was_verified(tmp_path: Path) -> None:
    store = filled(tmp_path)
    open_writer(store)
    segments(tmp_path)[0].write_bytes(b"PAR1 not any more")
    with pytest.raises(IntegrityError, match="cannot be read"):
        store.read("v1", np.array([1]))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    plain = json.loads((path / "manifest.json").read_text())
    change(plain)
    plain["sha256"] = labels_manifest._digest(plain["versions"])
    (path / "manifest.json").write_text(json.dumps(plain))


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    store = filled(tmp_path)
    edit(tmp_path, lambda plain: plain.update(format_version=2))
    with pytest.raises(IntegrityError, match=r"format 'recdistill.labels' version 2; this release reads .* version 1"):
        store.versions()


def test_damaged_manifests_are_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "manifest.json"
    good = path.read_text()
    for bad in (good[:-20], "", "[]", "{}", good.replace('"rows": 3', '"rows": 4'), good.replace("prequential", "x")):
        assert bad != good
        path.write_text(bad)
        with pytest.raises(IntegrityError, match="the label store's manifest is damaged"):
            ParquetLogitStore(tmp_path).versions()
    path.unlink()
    with pytest.raises(IntegrityError, match="has segments but no manifest"):
        ParquetLogitStore(tmp_path).versions()


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    filled(tmp_path)
    edit(tmp_path, lambda plain: plain["versions"][0]["segments"][0].update(file="../../x-000000.parquet"))
    with pytest.raises(IntegrityError, match="none that this store writes"):
        ParquetLogitStore(tmp_path).versions()


def test_two_labels_of_one_example_on_disk_are_refused(tmp_path: Path) -> None:
    store = filled(tmp_path, [1, 2])
    edit(tmp_path, lambda plain: plain["versions"][0]["segments"].append(plain["versions"][0]["segments"][0]))
    with pytest.raises(IntegrityError, match=r"example 1 has two labels of version 'v1' \(2 such examples\)"):
        store.read("v1", np.array([1]))


def test_a_commit_that_fails_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    store = filled(tmp_path, [1])
    before = store.snapshot_id()
    writer = open_writer(store)
    put(writer, [2])
    with monkeypatch.context() as patch:
        patch.setattr(labels_writer, "save_manifest", no_space)
        with pytest.raises(OSError, match="No space"):
            writer.commit()
    assert store.snapshot_id() == before
    assert writer.commit().count == 2
    assert read(store, [1, 2])[1] == [True, True]


def test_a_failed_spill_leaves_no_torn_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(_: Any, stream: Any, **__: Any) -> None:
        stream.write(b"PAR1 half")
        raise OSError(28, "No space left on device")

    writer = open_writer(ParquetLogitStore(tmp_path, segment_rows=2))
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", torn)
        with pytest.raises(OSError, match="No space"):
            put(writer, [1, 2, 3])
    assert segments(tmp_path) == []
    assert writer.commit().count == 3  # the rows were still pending


def test_abort_spares_segments_that_a_failing_commit_made_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(path: Path) -> None:
        if path == tmp_path:
            raise OSError(5, "Input/output error")

    store = ParquetLogitStore(tmp_path)
    for end in ("abort", "commit"):
        writer = open_writer(store, end)
        put(writer, [1])
        with monkeypatch.context() as patch:
            patch.setattr(labels_manifest, "sync_directory", late)
            with pytest.raises(OSError, match="Input/output"):
                writer.commit()
        getattr(writer, end)()
        assert read(store, [1], end)[1] == [True]


def test_a_held_lock_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path)
    monkeypatch.setattr(labels_writer, "LOCK_TIMEOUT", 0.05)
    with FileLock(tmp_path / "manifest.lock"), pytest.raises(IntegrityError, match="has held the label store's lock"):
        open_writer(store)


def test_a_store_travels_to_worker_processes(tmp_path: Path) -> None:
    store = filled(tmp_path, segment_rows=77)
    read(store, [1])
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.path, copy.segment_rows) == (tmp_path, 77)
    assert read(copy, [5])[1] == [True]


def _capture(path: Path, version: str, start: int, commits: int, outcome: Any) -> None:
    try:
        with open_writer(ParquetLogitStore(path, segment_rows=7), version) as writer:
            for number in range(commits):
                put(writer, range(start + 10 * number, start + 10 * number + 10))
                writer.commit()
        outcome.put("ok")
    except RecdistillError as error:
        outcome.put(type(error).__name__)


def test_two_processes_commit_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    outcome = context.Queue()
    starts = {"a": (0, "v1"), "b": (1000, "v1"), "c": (0, "v2")}
    workers = [
        context.Process(target=_capture, args=(tmp_path, version, start, 6, outcome))
        for start, version in starts.values()
    ]
    for worker in workers:
        worker.start()
    results = [outcome.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert results == ["ok"] * 3
    store = ParquetLogitStore(tmp_path)
    assert {entry.version: entry.count for entry in store.versions()} == {"v1": 120, "v2": 60}
    assert all(read(store, [*range(60), *range(1000, 1060)])[1])


def test_of_many_racing_writers_of_one_example_one_wins(tmp_path: Path) -> None:
    writers = [open_writer(ParquetLogitStore(tmp_path)) for _ in range(6)]
    for number, writer in enumerate(writers):
        put(writer, [1, 10 + number])
    outcomes: list[str] = []

    def commit(writer: ParquetLabelWriter) -> None:
        try:
            writer.commit()
            outcomes.append("ok")
        except LeakError:
            outcomes.append("leak")

    threads = [threading.Thread(target=commit, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["leak"] * 5 + ["ok"]
    assert ParquetLogitStore(tmp_path).versions()[0].count == 2
