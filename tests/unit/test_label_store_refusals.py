"""What the label store refuses, and what it says: wrong labels, wrong use, damage on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_store_cases import filled, open_writer, put, segments

from recdistill_core.errors import DataError, IntegrityError, LeakError, UsageError
from recdistill_core.interfaces import CaptureMode
from recdistill_parquet import labels_manifest
from recdistill_parquet.labels import ParquetLogitStore


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


def test_modes_tasks_and_views_do_not_mix(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(LeakError, match="version 'v1' holds prequential labels; leaky ones cannot join them"):
        open_writer(store, mode=CaptureMode.LEAKY)
    with pytest.raises(IntegrityError, match=r"version 'v1' has tasks \('click',\); the writer has \('like',\)"):
        open_writer(store, tasks=("like",))
    with pytest.raises(IntegrityError, match="version 'v1' has view 'view'; the writer has 'other'"):
        open_writer(store, view="other")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e39])
def test_non_finite_logits_are_refused_whole(tmp_path: Path, bad: float) -> None:
    store = ParquetLogitStore(tmp_path)
    writer = open_writer(store)
    values = torch.tensor([0.0, bad, bad, 1.0], dtype=torch.float64)
    with pytest.raises(DataError) as caught:
        writer.append(torch.arange(4), {"click": values}, step=31, scored_at=0)
    assert "2 of 4 logits of task 'click' are NaN or infinite, the first one of example 1" in str(caught.value)
    assert "step 31" in str(caught.value)
    assert "lower its learning rate and train it again" in str(caught.value)
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
