"""gc removes what nobody needs, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from label_store_cases import grown, names, open_writer, put, read, segments

from recdistill_core.errors import DataError, IntegrityError, UsageError
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_gc import collect


def test_gc_removes_what_nobody_needs(tmp_path: Path) -> None:
    store = grown(tmp_path, 3)
    store.compact("v1")
    (tmp_path / "segments/v1-000077.parquet").write_bytes(b"torn")
    (tmp_path / "manifest.json.tmp").write_text("{")
    (tmp_path / "segments/notes.txt").write_text("mine")
    tried = store.gc(0, dry_run=True)
    assert len(segments(tmp_path)) == 6
    report = store.gc(0)
    assert (tried.removed, tried.dry_run, report.dry_run) == (report.removed, True, False)
    assert {(entry.path, entry.why) for entry in report.removed} == {
        ("manifest.json.tmp", "leftover"),
        *((f"segments/v1-{number:06d}.parquet", "superseded") for number in range(3)),
        ("segments/v1-000077.parquet", "leftover"),
    }
    assert report.bytes == sum(entry.bytes for entry in report.removed) > 0
    assert report.kept == ()
    assert names(tmp_path / "segments") == {"v1-000003.parquet", "notes.txt"}
    assert read(ParquetLogitStore(tmp_path), range(30)) == ([key / 8 for key in range(30)], [True] * 30)
    assert store.gc(0).removed == ()


def test_gc_keeps_what_a_pin_needs(tmp_path: Path) -> None:
    store = grown(tmp_path, 3)
    snapshot = store.snapshot_id()
    store.pin("run", by="me")
    store.compact("v1")
    assert store.gc(0).removed == ()
    assert read(ParquetLogitStore(tmp_path, snapshot=snapshot), range(30))[1] == [True] * 30
    store.unpin("run")
    assert len(store.gc(0).removed) == 3
    with pytest.raises(IntegrityError, match="a committed segment of the label store is missing"):
        read(ParquetLogitStore(tmp_path, snapshot=snapshot), [0])


def test_gc_waits_for_the_grace(tmp_path: Path) -> None:
    store = grown(tmp_path, 3)
    for path in segments(tmp_path):
        os.utime(path, (0, 0))  # old files, but only now superseded
    store.compact("v1")
    left = tmp_path / "segments/v1-000077.parquet"
    left.write_bytes(b"torn")
    report = store.gc()
    assert report.removed == ()
    assert len(report.kept) == 4
    now = store.log()[-1]["at"] / 1000
    assert collect(tmp_path, 60, clock=lambda: now - 10_000).removed == ()  # a clock that was set back
    assert len(collect(tmp_path, 60, clock=lambda: now + 59).removed) == 0
    assert len(collect(tmp_path, 60, clock=lambda: now + 75).removed) == 4


def test_gc_leaves_living_writers_alone(tmp_path: Path) -> None:
    store = grown(tmp_path, 1, segment_rows=5)
    writer = open_writer(store)
    put(writer, range(100, 110))
    assert [entry.why for entry in store.gc(0).kept] == ["leftover"] * 2
    lost = open_writer(store, "v2")
    put(lost, range(10))
    del lost  # its process died
    assert {entry.path for entry in store.gc(0).removed} == {"segments/v2-000000.parquet", "segments/v2-000001.parquet"}
    assert writer.commit().count == 20
    assert names(tmp_path / "writers") == set()
    assert read(store, [100, 109])[1] == [True, True]


def test_a_new_file_with_the_name_of_a_superseded_one_is_not_taken_for_it(tmp_path: Path) -> None:
    store = grown(tmp_path, 3)
    store.compact("v1")
    store.gc(0)
    writer = open_writer(ParquetLogitStore(tmp_path, segment_rows=1))
    put(writer, [900])
    (fresh,) = set(segments(tmp_path)) - {tmp_path / "segments/v1-000003.parquet"}
    assert fresh.name == "v1-000001.parquet"  # the name of a file that the log knows as superseded
    assert store.gc(0).removed == ()
    assert writer.commit().count == 31


def test_a_segment_that_was_taken_away_is_not_committed(tmp_path: Path) -> None:
    store = grown(tmp_path, 1, segment_rows=5)
    writer = open_writer(store)
    put(writer, range(100, 110))
    gone = segments(tmp_path)[-1]
    gone.unlink()
    with pytest.raises(IntegrityError, match="a segment that was about to be committed is missing") as caught:
        writer.commit()
    assert str(gone) in str(caught.value)
    assert store.versions()[0].count == 10


def test_gc_removes_links_and_never_what_they_lead_to(tmp_path: Path) -> None:
    store = grown(tmp_path / "store", 1)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (tmp_path / "store/segments/v1-000077.parquet").symlink_to(outside / "precious")
    (tmp_path / "store/aligned").mkdir()
    (tmp_path / "store/aligned/abc").symlink_to(outside)
    assert len(store.gc(0).removed) == 2
    assert (outside / "precious").read_text() == "x"
    assert not (tmp_path / "store/aligned/abc").is_symlink()


def test_gc_of_a_damaged_or_absent_store_removes_nothing(tmp_path: Path) -> None:
    store = grown(tmp_path / "store", 3)
    store.pin("run", by="me")
    store.compact("v1")
    (tmp_path / "store/pins/run.json").write_text("{")
    with pytest.raises(IntegrityError, match="the pin 'run' of the label store is damaged"):
        store.gc(0)
    assert len(segments(tmp_path / "store")) == 4
    with pytest.raises(UsageError, match="grace_seconds must be >= 0, got -1"):
        store.gc(-1)
    for use in (ParquetLogitStore(tmp_path / "none").gc, ParquetLogitStore(tmp_path / "none").verify):
        with pytest.raises(DataError, match="there is no label store"):
            use()
    assert not (tmp_path / "none").exists()
