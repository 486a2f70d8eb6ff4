"""Segments that are torn, deleted or links: named, and never followed elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from damage_cases import IDS, append, small

from recdistill_core.errors import IntegrityError, LeakError
from recdistill_parquet import labels_log
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_findings import Severity


@pytest.fixture
def store(tmp_path: Path) -> ParquetLogitStore:
    return small(tmp_path / "store")


def test_a_torn_segment_that_no_commit_lists_is_ignored_and_reported(store: ParquetLogitStore) -> None:
    whole = next((store.path / "segments").iterdir()).read_bytes()
    torn = store.path / "segments/v1-000009.parquet"
    torn.write_bytes(whole[: len(whole) // 2])
    assert ParquetLogitStore(store.path).read("v1", IDS).valid["click"].sum() == 25
    (finding,) = store.verify()
    assert (finding.check, finding.where) == ("leftover", str(torn))
    assert append(store, "v1", 25, 60).count == 60


def test_a_torn_segment_that_a_commit_lists_is_named(store: ParquetLogitStore) -> None:
    torn = store.path / "segments/v1-000001.parquet"
    torn.write_bytes(torn.read_bytes()[:100])
    wider = ParquetLogitStore(store.path, 100)
    for use in (lambda: store.read("v1", IDS), lambda: append(store, "v1", 25, 30), lambda: wider.compact("v1")):
        with pytest.raises(IntegrityError, match="has 100 bytes, the log says") as caught:
            use()
        assert str(torn) in str(caught.value)
    (finding,) = store.verify()
    assert (finding.severity, finding.where) == (Severity.ERROR, str(torn))


def test_a_segment_that_is_deleted_under_a_reader(store: ParquetLogitStore) -> None:
    reader = ParquetLogitStore(store.path)
    assert reader.read("v1", IDS).valid["click"].sum() == 25
    gone = store.path / "segments/v1-000001.parquet"
    gone.unlink()
    assert reader.read("v1", IDS).valid["click"].sum() == 25  # it has read it
    with pytest.raises(IntegrityError, match="is missing") as caught:
        ParquetLogitStore(store.path).read("v1", IDS)
    assert str(gone) in str(caught.value)


@pytest.mark.parametrize("folder", ["segments", "log"])
def test_a_link_in_the_way_of_a_new_file_is_not_followed(store: ParquetLogitStore, folder: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x")
    name = {"segments": "v1-000003.parquet", "log": f"{2:012d}.json.tmp"}[folder]
    (store.path / folder / name).symlink_to(precious)
    if folder == "log":
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            append(store, "v1", 25, 30)
    else:
        append(store, "v1", 25, 30)
    assert precious.read_text() == "x"
    store.gc(0)
    assert append(store, "v1", 25, 30).count == 30
    assert precious.read_text() == "x"


def test_a_segment_behind_a_link_is_refused(store: ParquetLogitStore, tmp_path: Path) -> None:
    path = store.path / "segments/v1-000001.parquet"
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(IntegrityError, match="is a symbolic link; the store makes none"):
        ParquetLogitStore(store.path).read("v1", IDS)


def test_labels_that_differ_are_refused_after_all_this(store: ParquetLogitStore) -> None:
    with pytest.raises(LeakError, match="example 7 already has another label"):
        append(store, "v1", 0, 25, id7=39.0)
    assert labels_log.read_head(store.path).number == 1
