"""What the label store refuses, and what it says: wrong labels, wrong use, damage on disk."""

from __future__ import annotations

import hashlib
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
from recdistill_parquet import labels_log
from recdistill_parquet.labels import ParquetLogitStore


def test_leak_message_names_example_version_and_both_origins(tmp_path: Path) -> None:
    store = filled(tmp_path, [1, 2, 3])
    writer = open_writer(store)
    put(writer, [10, 11])
    with pytest.raises(LeakError) as caught:
        put(writer, [20, 2, 3, 1], [1.0, 1.5, 2.5, 0.125], step=8)
    assert str(caught.value) == (
        "example 2 already has another label of version 'v1' (2 of 4 examples do)\n"
        f"  where: {tmp_path}; the first: logit_click 0.25 at step 7, 2023-11-14T22:13:20.007+00:00, segment "
        "v1-000000.parquet; the second: logit_click 1.5 at step 8, 2023-11-14T22:13:20.008+00:00, given now; both "
        "prequential\n"
        "  to do: score every example once, before the teacher trains on it; a teacher that makes a second pass needs "
        "a version of its own"
    )
    assert caught.value.exit_code == 5
    put(writer, [20])  # the refused call has added nothing
    made = writer.commit()
    assert (made.count, made.duplicates) == (6, 0)


@pytest.mark.parametrize(
    ("ids", "logits", "first", "second"),
    [
        ([7, 7], [1.0, 2.0], "logit_click 1 at step 8, .*, not committed yet", "logit_click 2 at step 8"),
        ([11], [9.0], "logit_click 1.375 at step 7, .*, not committed yet", "logit_click 9 at step 8"),
        ([12], [9.0], "logit_click 1.5 at step 7, .*, segment v1-000000.parquet", "logit_click 9 at step 8"),
    ],
)
def test_the_first_label_is_found_wherever_it_is(
    tmp_path: Path, ids: list[int], logits: list[float], first: str, second: str
) -> None:
    writer = open_writer(ParquetLogitStore(tmp_path, segment_rows=2))
    put(writer, [12, 13])  # spilled
    put(writer, [11])
    with pytest.raises(LeakError, match=rf"the first: {first}; the second: {second}, .*, given now"):
        put(writer, ids, logits, step=8)


def test_modes_tasks_and_views_do_not_mix(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(LeakError, match="version 'v1' holds prequential labels; leaky ones cannot join them"):
        open_writer(store, mode=CaptureMode.LEAKY)
    with pytest.raises(IntegrityError, match=r"version 'v1' has tasks \('click',\); the writer has \('like',\)"):
        open_writer(store, tasks=("like",))
    with pytest.raises(IntegrityError, match="version 'v1' has view 'view'; the writer has 'other'"):
        open_writer(store, view="other")


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
        (flip, "does not match its sha256 in the log: its bytes were altered"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), r"has \d+ bytes, the log says \d+"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: (path.rename(path.with_suffix(".x")), path.symlink_to(path.with_suffix(".x"))), "is a symbolic"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read: .*Is a directory"),
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


def test_a_segment_that_changes_after_it_was_verified(tmp_path: Path) -> None:
    store = filled(tmp_path)
    open_writer(store)
    segments(tmp_path)[0].write_bytes(b"PAR1 not any more")
    with pytest.raises(IntegrityError, match=r"has 17 bytes, the log says \d+"):
        store.read("v1", np.array([1]))


def test_a_listed_file_that_is_no_segment(tmp_path: Path) -> None:
    filled(tmp_path)
    path = segments(tmp_path)[0]
    path.write_bytes(b"x" * 100)
    facts = {"bytes": 100, "sha256": hashlib.sha256(b"x" * 100).hexdigest()}
    edit_entry(tmp_path, lambda plain: plain["actions"][0]["entry"]["segments"][0].update(facts))
    with pytest.raises(IntegrityError, match="a committed segment of the label store cannot be read: "):
        ParquetLogitStore(tmp_path).read("v1", np.array([1]))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Change a sealed file and seal it again; its new content."""
    plain = json.loads(path.read_text())
    plain.pop("sha256")
    change(plain)
    path.write_text(json.dumps({**plain, "sha256": labels_log._digest(plain)}))
    return plain


def edit_entry(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the first commit of a store of one commit, and let the manifest name it."""
    plain = edit(path / "log" / f"{1:012d}.json", change)
    edit(path / "manifest.json", lambda manifest: manifest.update(id=labels_log._id(plain)))


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    store = filled(tmp_path)
    edit(tmp_path / "manifest.json", lambda plain: plain.update(format_version=3))
    with pytest.raises(IntegrityError, match=r"format 'recdistill.labels' version 3; this release reads .* version 2"):
        store.versions()
    assert (tmp_path / "manifest.json").write_text(
        json.dumps({"format": "recdistill.labels", "format_version": 1, "sha256": "x", "versions": []})
    )
    for use in (ParquetLogitStore.versions, open_writer):
        with pytest.raises(IntegrityError, match=r"'recdistill.labels' version 1; this release reads .* 2") as e:
            use(ParquetLogitStore(tmp_path))
        assert "read it with the release of recdistill that wrote it" in str(e.value)


def test_damaged_manifests_are_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "manifest.json"
    good = path.read_text()
    for bad in (good[:-20], "", "[]", "{}", "7", good.replace('"number": 1', '"number": 2'), "\xff" + good):
        assert bad != good
        path.write_bytes(bad.encode("latin-1"))
        with pytest.raises(IntegrityError, match="the label store's manifest is damaged"):
            ParquetLogitStore(tmp_path).versions()
    path.unlink()
    with pytest.raises(IntegrityError, match="has commits but no manifest"):
        ParquetLogitStore(tmp_path).versions()


def test_damaged_commits_are_refused(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with open_writer(store) as writer:
        put(writer, [100])
        writer.commit()
    first, second = sorted((tmp_path / "log").iterdir())
    good = second.read_text()
    for bad in (good[:-20], "", good.replace('"rows": 1', '"rows": 4'), good.replace("prequential", "x")):
        assert bad != good
        second.write_text(bad)
        with pytest.raises(IntegrityError, match="commit 2 of the label store is damaged") as caught:
            ParquetLogitStore(tmp_path).versions()
        assert str(second) in str(caught.value)
    second.write_bytes(first.read_bytes())
    with pytest.raises(IntegrityError, match="commit 2 of the label store says that it is commit 1"):
        ParquetLogitStore(tmp_path).versions()
    second.unlink()
    with pytest.raises(IntegrityError, match="commit 2 of the label store is missing"):
        ParquetLogitStore(tmp_path).versions()


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (1, {"by": "another"}, "commit 2 of the label store does not follow commit 1"),
        (2, {"by": "another"}, "commit 2 of the label store is another one than the manifest names"),
        (2, {"actions": [{"do": "leap", "version": "v1"}]}, "makes no sense: unknown action 'leap'"),
        (2, {"actions": [{"do": "restore", "version": "v7"}]}, "makes no sense: no version 'v7' to restore"),
        (2, {"actions": [{"do": "add"}]}, "makes no sense: 'entry'"),
        (
            2,
            {"actions": [{"do": "compact", "version": "v1", "removed": ["x"], "segments": []}]},
            "makes no sense: version 'v1' does not start with the files that were compacted",
        ),
        (
            2,
            {"actions": [{"do": "compact", "version": "v1", "removed": ["v1-000000.parquet"], "segments": []}]},
            "makes no sense: the compacted files of version 'v1' have another number of rows",
        ),
    ],
)
def test_commits_that_were_replaced_are_refused(
    tmp_path: Path, number: int, change: dict[str, Any], message: str
) -> None:
    store = filled(tmp_path)
    with open_writer(store) as writer:
        put(writer, [100])
        writer.commit()
    edit(sorted((tmp_path / "log").iterdir())[number - 1], lambda plain: plain.update(change))
    with pytest.raises(IntegrityError, match=message):
        ParquetLogitStore(tmp_path).versions()


@pytest.mark.parametrize("name", ["../../x-000000.parquet", "/x-000000.parquet", "v1-0.parquet", "v1-000000.parquet/x"])
def test_a_commit_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    filled(tmp_path)
    edit_entry(tmp_path, lambda plain: plain["actions"][0]["entry"]["segments"][0].update(file=name))
    with pytest.raises(IntegrityError, match="none that this store writes"):
        ParquetLogitStore(tmp_path).versions()


def test_two_labels_of_one_example_on_disk_are_refused(tmp_path: Path) -> None:
    store = filled(tmp_path, [1, 2])
    edit_entry(
        tmp_path,
        lambda plain: plain["actions"][0]["entry"].update(segments=2 * plain["actions"][0]["entry"]["segments"]),
    )
    for _ in range(2):
        with pytest.raises(IntegrityError, match=r"example 1 has two labels of version 'v1' \(2 such examples\)"):
            store.read("v1", np.array([1]))
