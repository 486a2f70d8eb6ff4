"""Large segments are written by a thread: the same files, and failures that nobody can miss."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_store_cases import open_writer, put, read, segments

from recdistill_core.errors import LeakError
from recdistill_parquet import labels_segments, labels_uncommitted
from recdistill_parquet.labels import ParquetLogitStore


@pytest.fixture(autouse=True)
def in_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_uncommitted, "LEAST_IN_BACKGROUND", 1)


class Gate:
    """Holds the threads that write segments until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        real = labels_uncommitted.write_segment

        def held(*given: Any) -> Any:
            if threading.current_thread().name == "recdistill-segment":
                self.opened.wait()
            return real(*given)

        monkeypatch.setattr(labels_uncommitted, "write_segment", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.opened.set()


@pytest.mark.parametrize("commits", [1, 3])
def test_the_files_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commits: int) -> None:
    ids = np.random.default_rng(0).permutation(100)
    for name, least in (("thread", 1), ("none", 1000)):
        monkeypatch.setattr(labels_uncommitted, "LEAST_IN_BACKGROUND", least)
        with open_writer(ParquetLogitStore(tmp_path / name, segment_rows=7)) as writer:
            for part in np.array_split(ids, commits):
                for batch in np.array_split(part, 9):
                    put(writer, batch)
                writer.commit()
    one, two = ([(path.name, path.read_bytes()) for path in segments(tmp_path / name)] for name in ("thread", "none"))
    assert one == two
    assert read(ParquetLogitStore(tmp_path / "thread"), range(100))[1] == [True] * 100


def test_rows_come_while_a_segment_is_written(tmp_path: Path, gate: Gate) -> None:
    writer = open_writer(ParquetLogitStore(tmp_path, segment_rows=4))
    put(writer, [1, 2, 3, 4])
    put(writer, [5, 6])
    assert segments(tmp_path) == []
    with pytest.raises(LeakError, match=r"the first: logit_click 0.25 at step 7, .*, not committed yet"):
        put(writer, [2], [9.0])
    gate.opened.set()
    assert writer.commit().count == 6


def test_what_cannot_be_written_is_told_by_the_next_append_which_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(handle: int, content: bytes, write: Callable[[int, bytes], int] = os.write) -> int:
        write(handle, content[:9])
        raise OSError(28, "No space left on device")

    store = ParquetLogitStore(tmp_path, segment_rows=2)
    writer = open_writer(store)
    with monkeypatch.context() as patch:
        patch.setattr(labels_segments.os, "write", torn)
        put(writer, [1, 2])
        with pytest.raises(OSError, match="No space"):
            put(writer, [3, 4])
        assert writer.counts["appended"] == 2
        with pytest.raises(OSError, match="No space"):
            writer.commit()
    assert segments(tmp_path) == []
    put(writer, [3, 4])
    assert writer.commit().count == 4  # no row was lost, and none is there twice
    assert read(store, [1, 2, 3, 4]) == ([0.125, 0.25, 0.375, 0.5], [True] * 4)


def test_a_small_segment_that_cannot_be_written_is_told_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(labels_uncommitted, "LEAST_IN_BACKGROUND", 100)
    store = ParquetLogitStore(tmp_path, segment_rows=2)
    writer = open_writer(store)
    with monkeypatch.context() as patch:
        patch.setattr(labels_segments.os, "write", full)
        put(writer, [1, 2])
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                put(writer, [3, 4])
        assert writer.counts == {"appended": 2, "duplicates": 0, "quarantined": 0}
    put(writer, [3, 4])
    assert (writer.commit().count, writer.counts["duplicates"]) == (4, 0)
    assert read(store, [1, 2, 3, 4]) == ([0.125, 0.25, 0.375, 0.5], [True] * 4)


@pytest.mark.parametrize("end", ["abort", "close"])
def test_abort_waits_for_the_file_and_removes_it(tmp_path: Path, gate: Gate, end: str) -> None:
    writer = open_writer(ParquetLogitStore(tmp_path, segment_rows=2))
    put(writer, [1, 2])
    threading.Timer(0.05, gate.opened.set).start()
    getattr(writer, end)()
    assert segments(tmp_path) == []
    assert list((tmp_path / "writers").iterdir()) == []


def test_a_fork_writes_what_its_parents_thread_was_at(tmp_path: Path, gate: Gate) -> None:
    store = ParquetLogitStore(tmp_path, segment_rows=2)
    writer = open_writer(store)
    put(writer, [1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which is what is tried here
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if writer.commit().count == 2 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    gate.opened.set()
    assert read(store, [1, 2])[1] == [True, True]
    assert writer.commit().duplicates == 2  # the same labels, which another process has committed
    assert store.versions()[0].count == 2
