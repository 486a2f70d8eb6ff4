"""Damage on disk, full disks, two writers: the right answer or an error that names the file, never a wrong label."""

from __future__ import annotations

import errno
import functools
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill_core.errors import IntegrityError, LeakError, RecdistillError
from recdistill_core.labels import CaptureMode, LabelChoice
from recdistill_parquet import labels_log
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_findings import Severity
from recdistill_parquet.labels_limits import Limits
from recdistill_parquet.labels_writer import ParquetLabelWriter

COUNT = 200
IDS = np.arange(COUNT)


def logit(key: int) -> float:
    return (key * 37 % 101) / 8


def append(store: ParquetLogitStore, version: str, first: int, last: int, **wrong: float) -> Any:
    with store.writer(version, tasks=["click"], mode=CaptureMode.PREQUENTIAL, view="v", facts={"x": 1}) as writer:
        values = [wrong.get(f"id{key}", logit(key)) for key in range(first, last)]
        writer.append(torch.arange(first, last), {"click": torch.tensor(values)}, step=first, scored_at=first)
        return writer.commit()


def rich(path: Path) -> ParquetLogitStore:
    """A store with everything in it: several commits, versions, a revocation, a pin, a view, values set aside."""
    store = ParquetLogitStore(path, 30, Limits(max_quarantined=0.9))
    append(store, "v1", 0, 50)
    store.pin("run", by="me")
    append(store, "v1", 50, 150)
    store.compact("v1")
    append(store, "v1", 150, COUNT, id199=float("nan"))
    append(store, "v2", 0, 30)
    append(store, "v2", 30, 60)
    store.revoke("v2", reason="bad", since=30)
    for number in range(60):  # past a stored state
        store.restore("v2") if number % 2 else None
        store.revoke("v2", reason="bad", since=30) if number % 2 else None
    store.aligned(LabelChoice(("v1",)), dataset="d", example_id=IDS, event_time=IDS)
    return store


@functools.cache
def rich_origin() -> Path:
    import atexit
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="recdistill-damage-"))
    atexit.register(shutil.rmtree, folder, True)
    rich(folder / "store")
    return folder / "store"


@functools.cache
def files_by_kind() -> list[list[str]]:
    """The store's files, grouped by their folder and suffix: there are many commits and one manifest."""
    origin, kinds = rich_origin(), dict[tuple[str, str], list[str]]()
    for path in sorted(path for path in origin.rglob("*") if path.is_file() and path.stat().st_size):
        name = path.relative_to(origin)
        kinds.setdefault((name.parts[0], path.suffix), []).append(str(name))
    return list(kinds.values())


def test_every_kind_of_file_is_damaged() -> None:
    kinds = {Path(names[0]).parts[0] + Path(names[0]).suffix for names in files_by_kind()}
    assert kinds >= {
        "manifest.json.json",
        "log.json",
        "log.state",
        "segments.parquet",
        "quarantine.parquet",
        "pins.json",
        "aligned.json",
        "aligned.npy",
    }


@functools.cache
def first_commit() -> str:
    return str(ParquetLogitStore(rich_origin()).log()[0]["id"])


EXPECTED = {"v1": {key: logit(key) for key in range(199)}, "v2": {key: logit(key) for key in range(30)}}


def answers(path: Path, first: str) -> None:
    """Everything that can be read, compared with what was written; an IntegrityError is fine, a wrong label is not."""

    def labels(signal: Any) -> dict[int, float]:
        valid = signal.valid["click"].numpy()
        return dict(zip(IDS[valid].tolist(), signal.logits["click"].numpy()[valid].tolist(), strict=True))

    def aligned(store: ParquetLogitStore) -> Any:
        return store.aligned(LabelChoice(("v1",)), dataset="d", example_id=IDS, event_time=IDS).signal

    def pinned(store: ParquetLogitStore) -> Any:
        pins = store.pins()
        return store.at(pins[0].snapshot if pins else first).read("v1", IDS)

    looks: dict[str, tuple[Callable[[ParquetLogitStore], Any], dict[int, float]]] = {
        "v1": (lambda store: store.read("v1", IDS), EXPECTED["v1"]),
        "v2": (lambda store: store.read("v2", IDS), EXPECTED["v2"]),
        "aligned": (aligned, EXPECTED["v1"]),
        "pinned": (pinned, {key: logit(key) for key in range(50)}),
    }
    for look, expected in looks.values():
        try:
            found = look(ParquetLogitStore(path))
        except IntegrityError:
            continue
        assert labels(found) == expected


@settings(max_examples=5000 if os.environ.get("RECDISTILL_KILLS") == "all" else 250, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_an_integrity_error_or_does_no_harm(data: st.DataObject) -> None:
    origin = rich_origin()
    name = data.draw(st.sampled_from(data.draw(st.sampled_from(files_by_kind()))))
    content = bytearray((origin / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    good = (origin / name).read_bytes()
    try:
        (origin / name).write_bytes(bytes(content))
        answers(origin, first_commit())
        ParquetLogitStore(origin).verify()
    finally:
        (origin / name).parent.mkdir(exist_ok=True)
        (origin / name).write_bytes(good)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_cut_file_is_an_integrity_error_or_does_no_harm(data: st.DataObject) -> None:
    origin = rich_origin()
    name = data.draw(st.sampled_from(data.draw(st.sampled_from(files_by_kind()))))
    good = (origin / name).read_bytes()
    try:
        (origin / name).write_bytes(good[: data.draw(st.integers(0, len(good)))])
        answers(origin, first_commit())
    finally:
        (origin / name).parent.mkdir(exist_ok=True)
        (origin / name).write_bytes(good)


def test_each_file_that_is_gone_is_an_integrity_error_or_does_no_harm() -> None:
    origin = rich_origin()
    for path in sorted(path for path in origin.rglob("*") if path.is_file()):
        good = path.read_bytes()
        path.unlink()
        try:
            answers(origin, first_commit())
        finally:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(good)


def test_the_whole_store_answers_right() -> None:
    origin = rich_origin()
    answers(origin, first_commit())
    store = ParquetLogitStore(origin)
    assert store.read("v1", IDS).valid["click"].sum() == 199
    assert [finding for finding in store.verify() if finding.severity is Severity.ERROR] == []


@pytest.fixture
def store(tmp_path: Path) -> ParquetLogitStore:
    made = ParquetLogitStore(tmp_path / "store", 10)
    append(made, "v1", 0, 25)
    return made


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


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte; where none may be mounted, the test says so by the name of its folder."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(place)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        yield tmp_path / "limited"
        return
    try:
        yield place / "store"
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


class _Rationed:
    """``os.write`` on a disk with so many bytes left; for where no small file system can be mounted."""

    def __init__(self, left: int) -> None:
        self.left, self.real = left, os.write

    def __call__(self, handle: int, content: Any) -> int:
        if self.left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = self.real(handle, bytes(content)[: self.left])
        self.left -= done
        return done


def test_a_full_disk_loses_nothing_and_gc_makes_room(full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ParquetLogitStore(full_disk, 2000)
    append(store, "v1", 0, COUNT)
    rng = np.random.default_rng(0)
    writer = store.writer("v1", tasks=["click"], mode=CaptureMode.PREQUENTIAL, view="v", facts={"x": 1})
    if full_disk.name == "limited":
        monkeypatch.setattr(os, "write", _Rationed(300_000))

    def fill(writer: ParquetLabelWriter) -> None:
        for _ in range(100):
            ids = torch.from_numpy(rng.integers(2**40, 2**60, 2000))
            writer.append(ids, {"click": torch.from_numpy(rng.normal(size=2000))}, step=1, scored_at=1)

    with pytest.raises(OSError, match="No space left on device"):
        fill(writer)
    del writer  # its process died of it
    monkeypatch.undo()
    assert store.versions()[0].count == COUNT
    assert ParquetLogitStore(full_disk).read("v1", IDS).logits["click"].tolist() == [logit(key) for key in range(COUNT)]
    assert [finding for finding in store.verify() if finding.severity is Severity.ERROR] == []
    assert store.gc(0).bytes > 200_000
    assert append(store, "v1", COUNT, COUNT + 50).count == COUNT + 50


def test_a_disk_that_fills_at_any_moment_of_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may write so many bytes to a file and no more: at each limit it fails, or commits everything."""
    outcomes = set()
    for limit in (0, 50, 150, 500, 1000, 1500, 2000, 5000):
        place = tmp_path / str(limit)
        append(ParquetLogitStore(place, 100), "v1", 0, 25)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            code = 2
            try:
                append(ParquetLogitStore(place, 100), "v1", 25, COUNT)
                code = 0
            except OSError as error:
                code = 3 if error.errno == errno.EFBIG else 4
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        outcomes.add(os.WEXITSTATUS(status))
        assert os.WEXITSTATUS(status) in (0, 3)
        count = COUNT if os.WEXITSTATUS(status) == 0 else 25
        assert ParquetLogitStore(place).read("v1", IDS).valid["click"].sum() == count
        assert append(ParquetLogitStore(place, 100), "v1", 0, COUNT).count == COUNT
    assert outcomes == {0, 3}


def _race(path: Path, number: int, together: bool, outcome: Any) -> None:
    store = ParquetLogitStore(path, 7)
    try:
        for part in range(5):
            first = 20 * part if together else 1000 * number + 20 * part
            append(store, "v1", first, first + 20)
        outcome.put("ok")
    except RecdistillError as error:
        outcome.put(str(error))


@pytest.mark.parametrize("together", [True, False])
def test_two_processes_write_at_once(tmp_path: Path, together: bool) -> None:
    context = multiprocessing.get_context("spawn")
    outcome = context.Queue()
    workers = [context.Process(target=_race, args=(tmp_path, number, together, outcome)) for number in range(2)]
    for worker in workers:
        worker.start()
    results = [outcome.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert results == ["ok", "ok"]
    store = ParquetLogitStore(tmp_path)
    (version,) = store.versions()
    assert (version.count, version.duplicates) == ((100, 100) if together else (200, 0))
    assert [finding for finding in store.verify() if finding.severity is Severity.ERROR] == []


HOLD = """
import sys, time
from pathlib import Path
from recdistill_parquet.labels_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_dead_owner_is_taken_over_and_logged(
    store: ParquetLogitStore, caplog: pytest.LogCaptureFixture
) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(store.path)], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    assert append(store, "v1", 25, 30).count == 30
    assert f"was left locked by {holder.pid}@" in caplog.text


def test_a_clock_that_jumps_back_loses_nothing(store: ParquetLogitStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 0)
    monkeypatch.setattr("time.time", lambda: 0.0)
    store.pin("run", by="me")
    store.compact("v1")
    append(store, "v1", 25, 60)
    assert store.gc(3600).removed == ()
    store.unpin("run")
    assert store.gc(3600).removed == ()
    assert ParquetLogitStore(store.path).read("v1", IDS).valid["click"].sum() == 60
    monkeypatch.undo()
    assert ParquetLogitStore(store.path).versions()[0].count == 60


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
