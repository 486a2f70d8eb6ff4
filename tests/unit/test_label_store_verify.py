"""What verify finds in a label store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_store_cases import grown, open_writer, put, read, segments

from recdistill_parquet import labels_log
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_findings import Finding, Severity, Thresholds, calibration
from recdistill_parquet.labels_limits import Limits


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
