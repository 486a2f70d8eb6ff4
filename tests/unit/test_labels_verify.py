"""``labels verify``: exit codes, what is printed, and outcomes from a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dataset_cases import SCHEMA, START, log
from label_store_cases import filled, grown, open_writer, put, segments
from labels_cases import Shell, rich_store, shell

from recdistill_labels.check import CALIBRATION, DRIFT, QUARANTINED
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_writer import write_dataset
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_findings import Thresholds


@pytest.fixture
def labels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    with shell(capsys, monkeypatch) as run:
        yield run


def test_the_defaults_are_those_of_the_store() -> None:
    assert Thresholds() == Thresholds(DRIFT, CALIBRATION, QUARANTINED)


def test_a_whole_store_is_ok(labels: Shell, tmp_path: Path) -> None:
    grown(tmp_path)
    done = labels("verify", tmp_path, "--json")
    assert (done.code, done.err) == (0, "")
    assert done.document == {
        "store": str(tmp_path), "ok": True, "counts": {"error": 0, "warning": 0, "info": 0}, "findings": []
    }  # fmt: skip
    assert labels("verify", tmp_path, "--strict").out == f"{tmp_path}: ok, 0 errors, 0 warnings\n"


def test_an_error_is_said_where_and_ends_with_5(labels: Shell, tmp_path: Path) -> None:
    grown(tmp_path)
    torn = segments(tmp_path)[2]
    torn.write_bytes(torn.read_bytes()[:100])
    done = labels("verify", tmp_path)
    assert (done.code, done.err) == (5, "")
    lines = done.out.splitlines()
    assert lines[:2] == ["error segment", f"  {torn}"]
    assert lines[2].startswith("  a committed segment of the label store has 100 bytes, the log says")
    assert lines[2].endswith("; version 'v1', 10 rows, needed by the newest snapshot")
    assert lines[3] == f"{tmp_path}: 1 error, 0 warnings"
    done = labels("verify", tmp_path, "--json")
    assert (done.code, done.document["ok"], done.document["counts"]["error"]) == (5, False, 1)
    (finding,) = done.document["findings"]
    assert (finding["severity"], finding["check"], finding["where"]) == ("error", "segment", str(torn))


def test_warnings_fail_where_they_should(labels: Shell, tmp_path: Path) -> None:
    rich_store(tmp_path)
    done = labels("verify", tmp_path, "--json")
    assert (done.code, done.document["ok"], done.document["counts"]["warning"]) == (0, True, 2)
    done = labels("verify", tmp_path, "--strict", "--json")
    assert (done.code, done.document["ok"]) == (5, False)
    assert "warning quarantine\n  version 'v1'\n  2 implausible rows" in labels("verify", tmp_path, "--strict").out
    assert labels("verify", tmp_path, "--strict", "--quarantined", "0.5").code == 0


@pytest.mark.parametrize("option", ["--drift", "--calibration", "--quarantined"])
def test_thresholds_are_checked(labels: Shell, tmp_path: Path, option: str) -> None:
    filled(tmp_path)
    done = labels("verify", tmp_path, option, "-1")
    assert (done.code, done.err) == (
        2,
        f"error: {option[2:]} must be >= 0, got -1.0\n  where: labels verify\n"
        "  to do: give a number that is not negative\n",
    )


def test_a_log_that_cannot_be_read_is_a_finding(labels: Shell, tmp_path: Path) -> None:
    write_dataset(log(), tmp_path / "dataset")
    grown(tmp_path / "store")
    (tmp_path / "store/log/000000000002.json").write_text("{")
    done = labels("verify", tmp_path / "store", "--dataset", tmp_path / "dataset", "--json")
    assert done.code == 5
    (finding,) = done.document["findings"]
    assert (finding["check"], finding["what"]) == ("log", "commit 2 of the label store is damaged")


def clicks(path: Path, rows: int = 4000) -> tuple[ParquetSource, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """A dataset with clicks of known logits; every tenth is not observed."""
    rng = np.random.default_rng(0)
    logit = rng.normal(-1, 1, rows)
    click = [int(x) if key % 10 else None for key, x in enumerate(rng.random(rows) < 1 / (1 + np.exp(-logit)))]
    columns = {
        "user_id": [key % 50 for key in range(rows)], "item_id": [key % 20 for key in range(rows)],
        "event_time": [START + key for key in range(rows)], "genre": ["rock"] * rows, "price": [1.0] * rows,
        "click": click, "like": [0] * rows, "watch_time": [1.0] * rows,
    }  # fmt: skip
    write_dataset(log(columns, SCHEMA), path)
    return ParquetSource(path), logit


def test_outcomes_of_a_dataset(labels: Shell, tmp_path: Path) -> None:
    source, logit = clicks(tmp_path / "dataset")
    store = ParquetLogitStore(tmp_path / "store")
    for version, shift, dataset in (("honest", 0.0, source.snapshot_id), ("boastful", 1.0, "e" * 32)):
        with open_writer(store, version, facts={"dataset": dataset}) as writer:
            put(writer, source.column("example_id").copy(), logit + shift)
            writer.commit()
    done = labels("verify", store.path, "--dataset", tmp_path / "dataset", "--json")
    found = [entry for entry in done.document["findings"] if entry["check"] == "calibration"]
    boastful, honest, remark = found
    assert (boastful["severity"], boastful["where"]) == ("warning", "version 'boastful', task 'click'")
    assert (honest["severity"], honest["where"]) == ("info", "version 'honest', task 'click'")
    observed = np.nanmean(source.column("label_click"))
    assert f"against {observed:.4g} positives of 3600 examples" in honest["what"]
    assert honest["value"] < 0.05 < 0.1 < boastful["value"]
    assert (remark["severity"], remark["where"]) == ("info", "version 'boastful'")
    assert remark["what"] == (
        f"its labels are of dataset {'e' * 32}, the outcomes of {source.snapshot_id}: they belong together only where "
        "both number examples alike"
    )
    assert (done.code, done.document["counts"]["warning"]) == (0, 1)
    words = ["verify", store.path, "--dataset", tmp_path / "dataset", "--strict"]
    assert labels(*words).code == 5
    assert labels(*words, "--calibration", "9").code == 0
    assert [
        entry
        for entry in labels("verify", store.path, "--json").document["findings"]
        if entry["check"] == "calibration"
    ] == []


def test_a_dataset_that_is_none(labels: Shell, tmp_path: Path) -> None:
    filled(tmp_path / "store")
    done = labels("verify", tmp_path / "store", "--dataset", tmp_path / "none")
    assert done.code == 3
    assert str(tmp_path / "none") in done.err
