"""Commits of the label store: all or nothing, durable, beside other writers and after crashes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from label_store_cases import filled, open_writer, put, read, segments

from recdistill_core import files
from recdistill_core.errors import DataError, IntegrityError, LeakError, RecdistillError, UsageError
from recdistill_core.interfaces import CaptureMode, LabelVersion
from recdistill_parquet import labels_lock, labels_log, labels_segments
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_writer import ParquetLabelWriter


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


def test_two_writers_interleaved_are_merged(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path, segment_rows=2)
    one, two = open_writer(store, facts={"rank": 0, "seed": 1}), open_writer(store, facts={"rank": 1})
    for start in range(0, 12, 4):
        put(one, [start, start + 1])
        put(two, [start + 2, start + 3])
    assert one.commit().count == 6
    assert two.commit() == LabelVersion("v1", CaptureMode.PREQUENTIAL, ("click",), "view", 12, {"rank": 1, "seed": 1})
    assert read(store, range(12)) == ([key / 8 for key in range(12)], [True] * 12)
    assert one.commit().count == 12
    put(one, [2])  # what the other writer has committed is known by now, and equal
    assert one.counts["duplicates"] == 1
    with pytest.raises(LeakError, match=r"example 2 already has another label of version 'v1' \(1 of 1 examples do\)"):
        put(one, [2], [7.0])


def test_two_writers_of_one_example_the_later_commit_is_refused(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path)
    one, two = open_writer(store), open_writer(store)
    put(one, [1, 2, 3])
    put(two, [4, 3, 2], [0.5, 9.0, 9.0], step=11)
    one.commit()
    before = store.snapshot_id()
    for _ in range(2):
        with pytest.raises(LeakError) as caught:
            two.commit()
        assert str(caught.value) == (
            "example 2 already has another label of version 'v1' (2 of 3 examples do)\n"
            f"  where: {tmp_path}; the first: logit_click 9 at step 11, 2023-11-14T22:13:20.011+00:00, segment "
            "v1-000001.parquet; the second: logit_click 0.25 at step 7, 2023-11-14T22:13:20.007+00:00, segment "
            "v1-000000.parquet, committed by another writer; both prequential\n"
            "  to do: score every example once, before the teacher trains on it; a teacher that makes a second pass "
            "needs a version of its own"
        )
    assert store.snapshot_id() == before
    two.close()
    assert len(segments(tmp_path)) == 1
    assert read(store, [1, 2, 3, 4])[1] == [True, True, True, False]


def test_two_writers_of_equal_labels_the_later_ones_are_dropped(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path, segment_rows=2)
    one, two = open_writer(store), open_writer(store)
    put(one, [1, 2, 3])
    put(two, [4, 3, 2, 5, 6])
    one.commit()
    made = two.commit()
    assert (made.count, made.duplicates) == (6, 2)
    assert read(store, range(8)) == ([0.0, *(key / 8 for key in range(1, 7)), 0.0], [False, *[True] * 6, False])
    again = open_writer(store)
    put(again, range(1, 7))
    made = again.commit()
    assert (made.count, made.duplicates) == (6, 8)
    listed = {segment.file for entry in store._state().entries for segment in entry.segments}
    assert {path.name for path in segments(tmp_path)} == listed


def test_two_writers_of_two_versions(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path)
    one, two = open_writer(store, "a"), open_writer(store, "b")
    put(one, [1])
    put(two, [1])
    two.commit()
    one.commit()
    assert [entry.version for entry in store.versions()] == ["b", "a"]


def test_modes_do_not_mix_between_open_and_commit(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path)
    one, two = open_writer(store), open_writer(store, mode=CaptureMode.LEAKY)
    put(one, [1])
    put(two, [2])
    one.commit()
    with pytest.raises(LeakError, match="cannot join them"):
        two.commit()


def test_a_commit_with_nothing_new_is_fine(tmp_path: Path) -> None:
    store = filled(tmp_path, [1])
    before = store.snapshot_id()
    assert open_writer(store).commit().count == 1
    assert store.snapshot_id() == before


def test_a_commit_that_fails_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    store = filled(tmp_path, [1])
    before = store.snapshot_id()
    writer = open_writer(store)
    put(writer, [2])
    with monkeypatch.context() as patch:
        patch.setattr(labels_log, "write_head", no_space)
        with pytest.raises(OSError, match="No space"):
            writer.commit()
    assert store.snapshot_id() == before
    assert writer.commit().count == 2
    assert read(store, [1, 2])[1] == [True, True]


def test_a_failed_spill_leaves_no_torn_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(handle: int, content: bytes, write: Callable[[int, bytes], int] = os.write) -> int:
        write(handle, content[:9])
        raise OSError(28, "No space left on device")

    writer = open_writer(ParquetLogitStore(tmp_path, segment_rows=2))
    with monkeypatch.context() as patch:
        patch.setattr(labels_segments.os, "write", torn)
        put(writer, [1, 2, 3])  # taken, whatever becomes of the file
        with pytest.raises(OSError, match="No space"):
            put(writer, [4])
    assert segments(tmp_path) == []
    assert writer.commit().count == 3


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
            patch.setattr(files, "sync", late)
            with pytest.raises(OSError, match="Input/output"):
                writer.commit()
        made = getattr(writer, end)()
        assert read(store, [1], end)[1] == [True]
        if end == "commit":
            assert (made.count, made.duplicates) == (1, 0)
            put(writer, [1, 2])
            made = writer.commit()
            assert (made.count, made.duplicates) == (2, 1)


def test_a_held_lock_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path)
    monkeypatch.setattr(labels_lock, "LOCK_TIMEOUT", 0.05)
    (tmp_path / "store.owner").write_text('{"owner": "77@there", "since": 1700000000000}')
    writer = open_writer(store)
    put(writer, [77])
    with FileLock(tmp_path / "store.lock"), pytest.raises(IntegrityError) as caught:
        writer.commit()
    assert "another process has held the label store's lock for 0 s: 77@there since 2023-11-14T22:13:20Z" in str(
        caught.value
    )
    assert writer.commit().count == 4


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
        put(writer, [1, 10 + number], [float(number), 0.0])
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


def test_a_commit_is_durable_in_the_right_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def name_of(handle: int) -> str:
        return Path(f"/proc/self/fd/{handle}").resolve().name

    def fsync(handle: int, real: Callable[[int], None] = os.fsync) -> None:
        done.append(f"sync {name_of(handle)}")
        real(handle)

    def replace(source: Path, target: Path, real: Callable[[Path, Path], Path] = Path.replace) -> Path:
        done.append(f"rename {source.name} {Path(target).name}")
        return real(source, target)

    writer = open_writer(ParquetLogitStore(tmp_path / "s"))
    put(writer, [1])
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    writer.commit()
    assert done == [
        "sync v1-000000.parquet",
        "sync segments",
        "sync store.owner.tmp",
        "rename store.owner.tmp store.owner",
        "sync s",
        "sync s",  # the folder of the log is new
        "sync 000000000001.json.tmp",
        "rename 000000000001.json.tmp 000000000001.json",
        "sync log",
        "sync manifest.json.tmp",
        "rename manifest.json.tmp manifest.json",
        "sync s",
    ]
