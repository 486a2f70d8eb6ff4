"""Two writers at once, a dead owner of the lock, a clock that jumps."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from damage_cases import IDS, append, small

from recdistill_core.errors import RecdistillError
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_findings import Severity


@pytest.fixture
def store(tmp_path: Path) -> ParquetLogitStore:
    return small(tmp_path / "store")


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
