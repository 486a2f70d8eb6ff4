"""Looking after a label store: verify, compact, gc and gaps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_store_cases import filled, open_writer, put, read, segments

from recdistill_core.errors import DataError, IntegrityError, UsageError
from recdistill_parquet import labels_compact, labels_log
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_findings import Finding, Severity, Thresholds, calibration
from recdistill_parquet.labels_gc import collect
from recdistill_parquet.labels_limits import Limits

T = 1_700_000_000_000
DAY = 86_400_000


def grown(path: Path, commits: int = 6, **options: Any) -> ParquetLogitStore:
    """Commit ``k`` holds the examples ``10 * k + [0, 10)``."""
    store = ParquetLogitStore(path, **options)
    with open_writer(store) as writer:
        for number in range(commits):
            put(writer, range(10 * number, 10 * number + 10), step=number)
            writer.commit()
    return store


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def found(store: ParquetLogitStore, check: str, **options: Any) -> list[Finding]:
    return [finding for finding in store.verify(**options) if finding.check == check]


def test_a_whole_store_has_nothing_wrong(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    store = grown(tmp_path)
    store.pin("run", by="me")
    assert store.verify(progress=lambda done, of: seen.append((done, of))) == ()
    assert seen == [(number, 6) for number in range(1, 7)]


def test_verify_names_each_damaged_segment_and_who_needs_it(tmp_path: Path) -> None:
    store = grown(tmp_path)
    one, two, *_ = segments(tmp_path)
    one.write_bytes(one.read_bytes()[:-1])
    two.unlink()
    first, second = store.verify()
    assert (first.severity, first.check, first.where) == (Severity.ERROR, "segment", str(one))
    assert first.what.startswith("a committed segment of the label store has ")
    assert first.what.endswith("; version 'v1', 10 rows, needed by the newest snapshot")
    assert (second.where, "is missing" in second.what) == (str(two), True)


def test_verify_finds_damage_that_only_a_pin_needs(tmp_path: Path) -> None:
    store = grown(tmp_path)
    store.pin("old-run", by="me")
    old = segments(tmp_path)[3]
    store.compact("v1")
    old.write_bytes(b"x")
    (finding,) = [finding for finding in store.verify() if finding.severity is Severity.ERROR]
    assert (finding.where, finding.what.endswith("needed by the pin 'old-run'")) == (str(old), True)


@pytest.mark.parametrize("file", ["manifest.json", "log/000000000002.json", "pins/run.json"])
def test_verify_names_damage_of_log_and_pins(tmp_path: Path, file: str) -> None:
    store = grown(tmp_path)
    store.pin("run", by="me")
    (tmp_path / file).write_text("{")
    (finding,) = store.verify()
    assert (finding.severity, finding.check, finding.where) == (Severity.ERROR, "log", str(tmp_path / file))
    assert "is damaged" in finding.what


def test_verify_finds_a_pin_of_another_store(tmp_path: Path) -> None:
    store, other = grown(tmp_path / "a"), grown(tmp_path / "b")
    store.pin("run", by="me")
    other.pin("run", by="me")
    (tmp_path / "b/pins/run.json").write_bytes((tmp_path / "a/pins/run.json").read_bytes())
    (finding,) = other.verify()
    assert finding.what == f"the pin 'run' keeps a snapshot that the label store does not have: {store.snapshot_id()}"


def test_verify_names_stored_states_that_are_no_use(tmp_path: Path) -> None:
    store = grown(tmp_path, labels_log.CHECKPOINT_EVERY + 1)
    assert store.verify() == ()
    path = tmp_path / "log" / f"{labels_log.CHECKPOINT_EVERY:012d}.state"
    good = labels_log.checked(path.read_bytes(), path, "")
    path.write_text(labels_log.sealed({**good, "state": []}))
    (finding,) = found(store, "log")
    assert (finding.severity, finding.where) == (Severity.WARNING, str(path))
    assert finding.what.endswith("which only costs time: it is another one than the commits give")
    path.write_text("{")
    assert "a stored state is damaged" in store.verify()[0].what


def test_verify_tells_leftovers_from_foreign_files(tmp_path: Path) -> None:
    store = grown(tmp_path)
    (tmp_path / "segments/v1-000077.parquet").write_bytes(b"torn")
    (tmp_path / "segments/notes.txt").write_text("mine")
    (tmp_path / "log/000000000007.json").write_text("{")
    (tmp_path / "log/x.json.tmp").write_text("{")
    (tmp_path / "manifest.json.tmp").write_text("{")
    (tmp_path / "README").write_text("mine")
    (tmp_path / "segments/v1-000078.parquet").symlink_to(tmp_path / "README")
    said = {(Path(finding.where).name, finding.check, finding.severity.value) for finding in store.verify()}
    assert said == {
        ("v1-000077.parquet", "leftover", "info"),
        ("v1-000078.parquet", "leftover", "warning"),
        ("notes.txt", "unknown", "warning"),
        ("000000000007.json", "leftover", "info"),
        ("x.json.tmp", "leftover", "info"),
        ("manifest.json.tmp", "leftover", "info"),
        ("README", "unknown", "warning"),
    }
    assert read(store, range(60))[1] == [True] * 60


def test_verify_finds_two_labels_of_one_example(tmp_path: Path) -> None:
    store = grown(tmp_path, 2)
    plain = labels_log.checked((path := labels_log.entry_path(tmp_path, 2)).read_bytes(), path, "")
    first = store.log()[0]["actions"][0]["entry"]["segments"]
    plain["actions"][0]["entry"]["segments"] = first
    path.write_text(labels_log.sealed({key: value for key, value in plain.items() if not key.startswith("format")}))
    labels_log.write_head(tmp_path, labels_log.Head(2, labels_log._id(plain)))
    (finding,) = found(store, "keys")
    assert finding.severity is Severity.ERROR
    assert finding.what == "10 examples have more than one label, the first one example 0"


def test_verify_counts_what_was_set_aside(tmp_path: Path) -> None:
    store = ParquetLogitStore(tmp_path, limits=Limits(max_quarantined=0.5))
    with open_writer(store) as writer:
        put(writer, range(100), [99.0] + [0.0] * 99)
        writer.commit()
    (finding,) = found(store, "quarantine")
    assert (finding.severity, finding.value) == (Severity.WARNING, 0.01)
    assert finding.what == "1 implausible rows were set aside, 1.000% of the version"
    (finding,) = found(store, "quarantine", thresholds=Thresholds(quarantined=0.02))
    assert finding.severity is Severity.INFO
    (aside,) = (tmp_path / "quarantine").iterdir()
    aside.unlink()
    assert [finding.severity for finding in found(store, "quarantine")] == [Severity.ERROR, Severity.WARNING]


def test_verify_measures_drift_between_early_and_late_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = ParquetLogitStore(tmp_path)
    for version, shift in (("steady", 0.0), ("moved", 1.0)):
        with open_writer(store, version) as writer:
            put(writer, range(6000), np.concatenate([rng.normal(0, 1, 3000), rng.normal(shift, 1, 3000)]))
            writer.commit()
    moved, steady = found(store, "drift")
    assert (moved.severity, moved.where) == (Severity.WARNING, "version 'moved', task 'click'")
    assert (steady.severity, steady.where) == (Severity.INFO, "version 'steady', task 'click'")
    assert moved.value is not None
    assert steady.value is not None
    assert steady.value < 0.05 < 0.5 < moved.value
    assert f"index {moved.value:.3f} between the first and the last third" in moved.what


def test_verify_compares_logits_with_outcomes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(-1, 1, 20_000)
    label = (rng.random(20_000) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    store = ParquetLogitStore(tmp_path)
    for version, shift in (("honest", 0.0), ("boastful", 1.0)):
        with open_writer(store, version) as writer:
            put(writer, range(20_000), logit + shift)
            writer.commit()
    outcomes = {"click": (np.arange(19_000)[::-1], label[:19_000][::-1]), "other": (np.arange(3), np.zeros(3))}
    boastful, honest = found(store, "calibration", outcomes=outcomes)
    assert (boastful.severity, boastful.where) == (Severity.WARNING, "version 'boastful', task 'click'")
    assert honest.severity is Severity.INFO
    assert honest.value is not None
    assert honest.value < 0.02
    assert f"against {label[:19_000].mean():.4g} positives of 19000 examples" in boastful.what
    store.revoke("boastful", reason="x")
    assert [finding.where for finding in found(store, "calibration", outcomes=outcomes)] == [honest.where]


def test_calibration_by_hand() -> None:
    measured = calibration(np.log([1.0, 3.0]), np.array([0.0, 1.0]))  # probabilities 0.5 and 0.75
    assert (measured.rows, measured.observed) == (2, 0.5)
    assert measured.predicted == pytest.approx(0.625)
    assert measured.error == pytest.approx((0.5 + 0.25) / 2)
    assert measured.deviation == pytest.approx(0.25)
    assert not measured.significant


def test_thresholds_are_checked() -> None:
    with pytest.raises(ValueError, match="drift must be >= 0, got -1"):
        Thresholds(drift=-1)


def test_compaction_keeps_every_label_and_its_order(tmp_path: Path) -> None:
    store = grown(tmp_path, segment_rows=25)
    store.revoke("v1", reason="x", since=T + 4)
    before, old = store.snapshot_id(), segments(tmp_path)
    entry = store.versions()[0]
    seen: list[tuple[int, int]] = []
    report = store.compact("v1", progress=lambda done, of: seen.append((done, of)))
    assert (report.version, report.rows, report.segments_before, report.segments_after) == ("v1", 60, 6, 3)
    assert report.bytes_before == sum(path.stat().st_size for path in old)
    assert seen[-1] == (60, 60)
    assert store.versions() == (entry,)
    assert read(store, range(60)) == read(store.at(before), range(60))
    assert read(store, range(60))[1] == [True] * 40 + [False] * 20
    listed = store._state().entries[0].segments
    assert [segment.rows for segment in listed] == [25, 25, 10]
    assert [segment.first_id for segment in listed] == [0, 25, 50]
    again = store.snapshot_id()
    assert store.compact("v1").segments_after == 3  # nothing to do
    assert store.snapshot_id() == again
    store.restore("v1")
    assert read(ParquetLogitStore(tmp_path), range(60)) == ([key / 8 for key in range(60)], [True] * 60)


def test_writers_go_on_while_a_version_is_compacted(tmp_path: Path) -> None:
    store = grown(tmp_path)
    writer = open_writer(store)
    put(writer, [100])
    store.compact("v1")
    put(writer, [0, 101])
    made = writer.commit()
    assert (made.count, made.duplicates) == (62, 1)
    put(writer, [5, 102])
    assert writer.commit().count == 63
    assert read(store, [0, 100, 101, 102])[1] == [True] * 4
    assert store.verify()[0].check == "superseded"


def test_of_two_compactions_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = grown(tmp_path)
    real = labels_compact._commit

    def late(*given: Any) -> None:
        monkeypatch.setattr(labels_compact, "_commit", real)
        store.compact("v1")
        real(*given)

    monkeypatch.setattr(labels_compact, "_commit", late)
    with pytest.raises(UsageError, match=r"version 'v1' was compacted by somebody else(.|\n)*nothing is lost"):
        store.compact("v1")
    assert read(store, range(60))[1] == [True] * 60
    assert len(segments(tmp_path)) == 7  # the new files of the one that lost are gone
    assert names(tmp_path / "writers") == set()


def test_compaction_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no version 'v2'"):
        grown(tmp_path).compact("v2")
    with pytest.raises(UsageError, match="cannot compact a label store that is pinned"):
        (store := ParquetLogitStore(tmp_path)).at(store.snapshot_id()).compact("v1")


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


def test_gaps_by_time_and_day(tmp_path: Path) -> None:
    store = filled(tmp_path, [0, 1, 4, 5, 9])
    with open_writer(store, "v2") as writer:
        put(writer, [2])
        writer.commit()
    order = np.random.default_rng(0).permutation(10)
    ids, times = np.arange(10)[order], (T + np.arange(10) * DAY // 4)[order]
    gaps = store.gaps(["v1"], ids, times)
    assert (gaps.rows, gaps.missing, gaps.coverage) == (10, 5, 0.5)
    quarter = DAY // 4
    assert [(gap.first, gap.last, gap.rows) for gap in gaps.gaps] == [
        (T + 2 * quarter, T + 3 * quarter, 2),
        (T + 6 * quarter, T + 8 * quarter, 3),
    ]
    # the first event is on 2023-11-14 at 22:13
    assert [(day.day, day.rows, day.missing) for day in gaps.days] == [
        ("2023-11-15", 4, 2),
        ("2023-11-16", 4, 3),
    ]
    both = store.gaps(["v1", "v2"], ids, times, min_rows=2)
    assert (both.missing, [gap.rows for gap in both.gaps]) == (4, [3])
    store.revoke("v1", reason="x")
    assert store.gaps(["v1"], ids, times).missing == 10
    nothing = store.gaps(["v1"], ids[:0], times[:0])
    assert (nothing.coverage, nothing.gaps, nothing.days) == (1.0, (), ())


def test_gaps_need_a_version_that_is_there(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(UsageError, match="gaps need at least one teacher version"):
        store.gaps([], np.arange(3), np.arange(3))
    with pytest.raises(DataError, match="has no version 'v2'"):
        store.gaps(["v2"], np.arange(3), np.arange(3))


def test_labels_of_ids_without_a_pattern_take_at_most_12_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count = 300_000
    store = ParquetLogitStore(tmp_path, segment_rows=count)
    with open_writer(store) as writer:
        for step, ids in enumerate(np.array_split(rng.integers(-(2**63), 2**63 - 1, count), 100)):
            put(writer, ids, rng.normal(-3, 1.5, ids.size), step=step)
            if step % 10 == 9:
                writer.commit()
    assert store.compact("v1").bytes_after / count <= 12
    dense = ParquetLogitStore(tmp_path / "dense", segment_rows=count)
    with open_writer(dense) as writer:
        put(writer, rng.permutation(count), rng.normal(-3, 1.5, count))
        writer.commit()
    assert torch.is_tensor(dense.read("v1", np.arange(3)).logits["click"])
    assert segments(tmp_path / "dense")[0].stat().st_size / count <= 7
