"""The log of a label store: snapshots, revoking and restoring, pins, implausible values, the lock's owner."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from label_store_cases import open_writer, put, read, segments

from recdistill_core.errors import DataError, IntegrityError, LeakError, UsageError
from recdistill_core.labels import LabelVersion
from recdistill_parquet import labels_log
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_guard import Guard, stability
from recdistill_parquet.labels_limits import Limits

T = 1_700_000_000_000


def grown(path: Path, commits: int, **options: Any) -> ParquetLogitStore:
    """Commit ``k`` holds example ``k``, scored at ``T + k``."""
    store = ParquetLogitStore(path, **options)
    with open_writer(store) as writer:
        for number in range(commits):
            put(writer, [number], step=number)
            writer.commit()
    return store


def test_every_snapshot_can_be_read_as_it_was(tmp_path: Path) -> None:
    store = grown(tmp_path, 5)
    ids = [entry["id"] for entry in store.log()]
    assert ids[-1] == store.snapshot_id()
    assert len(set(ids)) == 5
    for number, snapshot in enumerate(ids, 1):
        for name in (snapshot, snapshot[:8]):
            old = store.at(name)
            assert old.snapshot_id() == snapshot
            assert old.versions()[0].count == number
            assert read(old, range(5))[1] == [key < number for key in range(5)]


def test_log_says_who_did_what_when(tmp_path: Path) -> None:
    store = grown(tmp_path, 2)
    store.revoke("v1", reason="diverged", since=T + 1)
    one, two, three = store.log()
    assert (one["parent"], two["parent"], three["parent"]) == (labels_log.EMPTY, one["id"], two["id"])
    assert [entry["number"] for entry in (one, two, three)] == [1, 2, 3]
    assert one["at"] <= two["at"] <= three["at"]
    assert "@" in one["by"]
    assert [entry["actions"][0]["do"] for entry in (one, two, three)] == ["add", "add", "revoke"]


def test_unknown_snapshots_are_named(tmp_path: Path) -> None:
    store = grown(tmp_path, 2)
    short = store.snapshot_id()[:7]
    for name, text in (
        ("0123456789", "the label store has no snapshot '0123456789'"),
        (short, f"'{short}' has too few digits to name a snapshot"),
    ):
        with pytest.raises(DataError, match=text) as caught:
            store.at(name)
        assert "name a snapshot that 'recdistill labels log' lists, by 8 digits of its id or more" in str(caught.value)


def test_a_pinned_store_is_read_only(tmp_path: Path) -> None:
    store = grown(tmp_path, 1)
    old = store.at(store.snapshot_id())
    for what in (
        lambda: open_writer(old),
        lambda: old.revoke("v1", reason="x"),
        lambda: old.restore("v1"),
    ):
        with pytest.raises(UsageError, match=r"cannot (write to|change) a label store that is pinned to snapshot") as e:
            what()
        assert "open it without a snapshot" in str(e.value)


@pytest.mark.parametrize("commits", [labels_log.CHECKPOINT_EVERY + 3, 2 * labels_log.CHECKPOINT_EVERY])
def test_states_in_between_are_only_a_short_cut(tmp_path: Path, commits: int) -> None:
    store = grown(tmp_path, commits)
    states = sorted((tmp_path / "log").glob("*.state"))
    assert len(states) == commits // labels_log.CHECKPOINT_EVERY
    expected = store.versions()
    assert ParquetLogitStore(tmp_path).versions() == expected
    first = tmp_path / "log" / f"{1:012d}.json"
    hidden = first.read_bytes()
    first.unlink()
    assert ParquetLogitStore(tmp_path).versions() == expected  # the entries before a state are not opened
    first.write_bytes(hidden)
    for state in states:
        state.write_bytes(state.read_bytes()[:-9])
    assert ParquetLogitStore(tmp_path).versions() == expected
    for state in states:
        state.unlink()
    assert ParquetLogitStore(tmp_path).versions() == expected


def test_revoking_hides_and_restoring_shows(tmp_path: Path) -> None:
    store = grown(tmp_path, 4)
    with open_writer(store, "v2") as writer:
        put(writer, [0, 1])
        writer.commit()
    before = store.snapshot_id()
    assert read(store, range(4))[1] == [True] * 4
    store.revoke("v1", reason="bad learning rate", since=T + 2)
    found = store.versions()[0]
    assert (found.count, found.revoked, found.revoked_since) == (4, "bad learning rate", T + 2)
    assert read(store, range(4)) == ([0.0, 0.125, 0.0, 0.0], [True, True, False, False])
    assert read(ParquetLogitStore(tmp_path), range(4))[1] == [True, True, False, False]
    assert read(store, [0, 1], "v2")[1] == [True, True]
    assert store.versions()[1].revoked == ""
    assert read(store.at(before), range(4))[1] == [True] * 4
    store.restore("v1")
    assert store.versions()[0] == LabelVersion(**{**vars(found), "revoked": "", "revoked_since": None})
    assert read(store, range(4))[1] == [True] * 4
    store.revoke("v1", reason="all of it")
    assert read(store, range(4))[1] == [False] * 4


def test_revoked_labels_are_still_there(tmp_path: Path) -> None:
    store = grown(tmp_path, 2)
    store.revoke("v1", reason="x", since=T + 1)
    with open_writer(store) as writer:
        with pytest.raises(LeakError, match="already has another label"):
            put(writer, [1], [9.0])
        put(writer, [1, 5], step=0)
        made = writer.commit()
    assert (made.count, made.duplicates, made.revoked) == (3, 1, "x")
    assert read(store, [0, 1, 5])[1] == [True, False, True]  # scored before the time from which labels are revoked


def test_revoking_is_refused_where_it_means_nothing(tmp_path: Path) -> None:
    store = grown(tmp_path, 1)
    with pytest.raises(UsageError, match=r"revoking version 'v1' needs a reason(.|\n)*say what is wrong"):
        store.revoke("v1", reason=" ")
    with pytest.raises(UsageError, match=r"version 'v1' is not revoked(.|\n)*leave it as it is"):
        store.restore("v1")
    for change in (store.restore, lambda version: store.revoke(version, reason="x")):
        with pytest.raises(DataError, match="has no version 'v2'"):
            change("v2")
        with pytest.raises(DataError, match="the store is empty"):
            ParquetLogitStore(tmp_path / "none").restore("v1")
    store.revoke("v1", reason="first")
    with pytest.raises(UsageError, match=r"version 'v1' is revoked already: first(.|\n)*restore it first"):
        store.revoke("v1", reason="second")


def test_pins(tmp_path: Path) -> None:
    store = grown(tmp_path, 2)
    first, second = (entry["id"] for entry in store.log())
    assert store.pins() == ()
    made = store.pin("run.7", by="run /somewhere")
    assert (made.name, made.snapshot, made.by) == ("run.7", second, "run /somewhere")
    old = store.at(first).pin("old", by="me")
    assert old.snapshot == first
    assert store.pins() == (old, made)
    assert store.pin("run.7", by="again") == made  # nothing to do
    with pytest.raises(UsageError, match=f"the pin 'old' is there and keeps another snapshot, {first}"):
        store.pin("old", by="me")
    store.unpin("old")
    assert store.pins() == (made,)
    with pytest.raises(DataError, match=r"the label store has no pin 'run.8' \(did you mean 'run.7'\?\)"):
        store.unpin("run.8")
    with pytest.raises(DataError, match=r"the label store has no commit to pin(.|\n)*commit labels first"):
        ParquetLogitStore(tmp_path / "none").pin("x", by="me")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "-a", "ä", "a b", "a\n", "x" * 129, "/x"])
def test_pins_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    store = grown(tmp_path, 1)
    for use in (lambda: store.pin(name, by="me"), lambda: store.unpin(name)):
        with pytest.raises(UsageError, match="is not usable: 1 to 128 letters, digits"):
            use()


def test_damaged_pins_are_refused(tmp_path: Path) -> None:
    store = grown(tmp_path, 1)
    store.pin("run", by="me")
    path = tmp_path / "pins" / "run.json"
    good = path.read_text()
    path.write_text(good.replace('"by": "me"', '"by": "be"'))
    with pytest.raises(IntegrityError, match="the pin 'run' of the label store is damaged"):
        store.pins()
    path.write_text(labels_log.sealed({"snapshot": store.snapshot_id()}))
    with pytest.raises(IntegrityError, match="the pin 'run' of the label store is no pin: 'by'"):
        store.pins()
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(IntegrityError, match="the pin 'run' of the label store is a symbolic link"):
        store.pins()


def test_a_snapshot_with_missing_files_cannot_be_pinned(tmp_path: Path) -> None:
    store = grown(tmp_path, 2)
    segments(tmp_path)[0].unlink()
    with pytest.raises(IntegrityError, match=r"a file that snapshot \w+ needs is gone(.|\n)*v1-000000.parquet"):
        store.pin("run", by="me")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e39, 40.5, -41.0])
def test_implausible_logits_are_set_aside(tmp_path: Path, bad: float, caplog: pytest.LogCaptureFixture) -> None:
    store = ParquetLogitStore(tmp_path, limits=Limits(max_quarantined=0.5))
    reason = {"nan": "NaN", "inf": "infinite", "-inf": "infinite", "1e+39": "infinite"}.get(str(bad), "out of range")
    with open_writer(store) as writer:
        values = torch.tensor([0.0, bad, 1.0, bad], dtype=torch.float64)
        writer.append(torch.arange(4), {"click": values}, step=31, scored_at=5)
        assert writer.counts == {"appended": 2, "duplicates": 0, "quarantined": 2}
        put(writer, [1])  # the example has no label yet
        with caplog.at_level(logging.WARNING):
            made = writer.commit()
    assert (made.count, made.quarantined) == (3, 2)
    assert f"2 implausible labels were set aside in {tmp_path / 'quarantine'}" in caplog.text
    assert read(store, range(4)) == ([0.0, 0.125, 1.0, 0.0], [True, True, True, False])
    (aside,) = (tmp_path / "quarantine").iterdir()
    table = pq.read_table(aside)
    assert table["example_id"].to_pylist() == [1, 3]
    assert table["reason"].to_pylist() == [reason] * 2
    assert table["step"].to_pylist() == [31, 31]


def test_too_many_implausible_logits_abort(tmp_path: Path) -> None:
    writer = open_writer(ParquetLogitStore(tmp_path))
    put(writer, range(999), [1.0] * 997 + [float("nan"), 99.0], step=31)
    with pytest.raises(DataError) as caught:
        writer.commit()
    assert str(caught.value) == (
        "2 of 999 rows of logits are implausible (1 NaN, 1 out of range), more than the 0.10% that the store sets "
        "aside\n"
        f"  where: {tmp_path}, version 'v1'\n"
        "  to do: look at the teacher: it may have diverged, or give probabilities; or raise the store's "
        "max_quarantined"
    )
    with pytest.raises(DataError, match=r"3 of 1000 rows (.|\n)*step 32"):
        put(writer, [2000], [float("inf")], step=32)  # from here on it is said at once
    assert ParquetLogitStore(tmp_path).versions() == ()


def test_drifted_batches_are_set_aside(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = ParquetLogitStore(tmp_path, limits=Limits(max_quarantined=0.9, max_drift=0.25))
    with open_writer(store) as writer:
        for step, shift in enumerate([0, 0, 0, 0, 0, 2, 0]):
            put(writer, range(2048 * step, 2048 * step + 2048), rng.normal(shift, 1, 2048), step=step)
        assert writer.counts["quarantined"] == 2048
        put(writer, range(10**6, 10**6 + 500), rng.normal(5, 1, 500))  # too few to judge
        assert writer.commit().quarantined == 2048
    (aside,) = (tmp_path / "quarantine").iterdir()
    assert set(pq.read_table(aside)["reason"].to_pylist()) == {"drift"}


def test_stability_is_zero_for_equal_samples_and_grows_with_the_shift() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=20_000)
    found = [stability(base, rng.normal(shift, 1, 20_000)) for shift in (0.0, 0.3, 1.0)]
    assert found[0] < 0.01 < found[1] < 0.25 < found[2]
    assert stability(base, base) == 0
    expected = 0.0  # by hand, for two bins
    for before, after in ((10.5 / 21, 5.5 / 21), (10.5 / 21, 15.5 / 21)):
        expected += (after - before) * np.log(after / before)
    assert stability(np.arange(20.0), np.r_[np.zeros(5), np.full(15, 19.0)], bins=2) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_abs_logit": 0}, "max_abs_logit must be > 0, got 0"),
        ({"max_quarantined": 1.5}, r"max_quarantined must lie in \[0, 1\], got 1.5"),
        ({"max_drift": -1}, "max_drift must be >= 0, got -1"),
    ],
)
def test_limits_are_checked(limits: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(**limits)


def test_guard_counts_reasons() -> None:
    guard = Guard(Limits(), ["a", "b"])
    columns = {"a": np.array([1, np.nan, np.inf, 50], np.float32), "b": np.array([1, 1, np.nan, 1], np.float32)}
    assert guard.inspect(columns, "here").tolist() == ["", "NaN", "NaN", "out of range"]
    assert (guard.seen, guard.set_aside, guard.reasons) == (4, 3, {"NaN": 2, "out of range": 1})


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('{"owner": "77@there", "since": 1700000000000}', "77@there since 2023-11-14T22:13:20Z"),
        ('{"owner": "77', "an unknown process (its owner file is damaged)"),
    ],
)
def test_a_dead_owner_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, said: str, told: str) -> None:
    store = grown(tmp_path, 1)
    (tmp_path / "store.owner").write_text(said)
    with caplog.at_level(logging.WARNING):
        store.revoke("v1", reason="x")
    assert f"was left locked by {told}, which ended in the middle of a commit" in caplog.text
    assert not (tmp_path / "store.owner").exists()
    caplog.clear()
    store.restore("v1")
    assert caplog.text == ""


def test_a_clock_that_jumps_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = grown(tmp_path, 2)
    monkeypatch.setattr("time.time_ns", lambda: 1_000_000_000)
    with open_writer(store) as writer:
        put(writer, [7])
        writer.commit()
    assert [entry["at"] for entry in store.log()][-1] == 1000
    assert read(ParquetLogitStore(tmp_path), [0, 1, 7])[1] == [True] * 3
    assert json.loads((tmp_path / "manifest.json").read_text())["number"] == 3


def test_a_revocation_that_hides_nothing_is_refused(tmp_path: Path) -> None:
    store = grown(tmp_path, 3)
    with pytest.raises(UsageError, match=f"no label of version 'v1' was scored at {T + 3} ms or later"):
        store.revoke("v1", reason="x", since=T + 3)
    store.revoke("v1", reason="x", since=T + 2)
    with pytest.raises(UsageError, match=f"is revoked already since {T + 2} ms: x"):
        store.revoke("v1", reason="y", since=T + 1)


@pytest.mark.parametrize(("sign", "kind"), [("config_digest", "run directory"), ("time_range", "dataset")])
def test_other_directories_are_told_apart_from_a_damaged_store(sign: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({sign: "x", "format": 1}))
    with pytest.raises(DataError, match=f"this is a {kind}, not a label store"):
        ParquetLogitStore(tmp_path).versions()
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match=f"to do: give {tmp_path / 'labels'}"):
        ParquetLogitStore(tmp_path).versions()
