"""The engine ``ray``: two processes share a job, a killed one is replaced, and nothing of it stays."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from recdistill_core.errors import PluginError
from recdistill_ray import RayConfig
from recdistill_ray.engine import RayEngine
from recdistill_ray.session import connected

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    """Two workers, in a Ray that all tests of this file share."""
    config = RayConfig(workers=2, cpus_per_worker=0.5, retries=2)
    with connected(config):
        yield RayEngine(config)


@dataclass
class Table:
    """Writes a row for each block into a database, once two workers have opened it."""

    path: str

    def open(self) -> Callable[[int], int]:
        table = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        table.execute("INSERT INTO opened VALUES (?)", [os.getpid()])

        def do(block: int) -> int:
            until = time.monotonic() + 120
            while table.execute("SELECT count(*) FROM opened").fetchone()[0] < 2 and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(0.02)
            table.execute("INSERT OR IGNORE INTO done VALUES (?, ?)", [block, os.getpid()])
            return os.getpid()

        return do


def test_other_peoples_messages_still_come(engine: RayEngine, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("recdistill.labels").warning("3 labels were set aside")
    assert "3 labels were set aside" in caplog.text


def test_two_workers_share_a_job(engine: RayEngine, tmp_path: Path) -> None:
    path = tmp_path / "done.sqlite"
    table = sqlite3.connect(path, isolation_level=None)
    table.executescript("CREATE TABLE opened (process); CREATE TABLE done (block PRIMARY KEY, process)")
    told = dict(engine.run(Table(str(path)), range(40)))
    assert sorted(told) == list(range(40))
    assert dict(table.execute("SELECT block, process FROM done")) == told
    opened = {process for (process,) in table.execute("SELECT process FROM opened")}
    assert {*told.values()} == opened
    assert len(opened) == 2
    assert os.getpid() not in opened


@dataclass
class Deadly:
    """Ends its worker as the machine would for want of memory: in block 5, or where it is opened.

    Attributes:
        folder: for a file for each attempt. lives: how many attempts it takes.
    """

    folder: str
    lives: int
    in_open: bool = False

    def open(self) -> Callable[[int], int]:
        if self.in_open:
            self.attempt()

        def do(block: int) -> int:
            if block == 5 and not self.in_open:
                self.attempt()
            return 10 * block

        return do

    def attempt(self) -> None:
        before = len(list(Path(self.folder).iterdir()))
        (Path(self.folder) / str(before)).touch()
        if before < self.lives:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_replaced_and_its_block_done_again(engine: RayEngine, tmp_path: Path) -> None:
    told = list(engine.run(Deadly(str(tmp_path), lives=1), range(12)))
    assert sorted(told) == [(place, 10 * place) for place in range(12)]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_block_that_ends_every_worker_is_named(engine: RayEngine, tmp_path: Path) -> None:
    with pytest.raises(PluginError) as error:
        list(engine.run(Deadly(str(tmp_path), lives=99), range(12)))
    assert str(error.value) == (
        "block 5 has ended its worker 3 times\n  where: engine 'ray'\n  to do: look for what ends it, such as memory: "
        "fewer workers or smaller blocks; what was finished stays done"
    )
    assert len(list(tmp_path.iterdir())) == 3


def test_a_job_that_ends_every_worker_is_given_up(engine: RayEngine, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="opening the job has ended its worker 4 times\n  where: engine 'ray'"):
        list(engine.run(Deadly(str(tmp_path), lives=99, in_open=True), range(12)))
    assert len(list(tmp_path.iterdir())) == 4


class Unpicklable(Exception):
    """Holds what no process can hand to another."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.table = sqlite3.connect(":memory:")


class Odd:
    """Raises, or answers with, what cannot be sent."""

    def open(self) -> Callable[[str], Any]:
        def do(block: str) -> Any:
            if block == "raise":
                raise Unpicklable("the table is locked")
            return sqlite3.connect(":memory:")

        return do


def test_an_error_that_cannot_be_sent_keeps_its_type_and_text_in_words(engine: RayEngine) -> None:
    with pytest.raises(RuntimeError) as error:
        list(engine.run(Odd(), ["raise"]))
    assert str(error.value) == "Unpicklable: the table is locked"
    (note,) = error.value.__notes__
    assert note.startswith("in a worker of engine 'ray':\nTraceback")
    assert 'raise Unpicklable("the table is locked")' in note


def test_an_answer_that_cannot_be_sent_is_an_error(engine: RayEngine) -> None:
    with pytest.raises(TypeError, match=r"cannot pickle 'sqlite3.Connection' object"):
        list(engine.run(Odd(), ["answer"]))


def test_more_workers_than_there_is_room_for_take_turns(engine: RayEngine, tmp_path: Path) -> None:
    many = RayEngine(RayConfig(workers=3, cpus_per_worker=1.0))
    assert dict(many.run(Deadly(str(tmp_path), lives=0), range(6))) == {place: 10 * place for place in range(6)}


ALONE = """
import json, os, sys, time
from pathlib import Path
from recdistill_core.config import make
from recdistill_core.errors import UsageError
from recdistill_core.registry import installed
from recdistill_core.testing.engine_jobs import Sums

def children():
    return [int(child) for path in Path("/proc/self/task").glob("*/children") for child in path.read_text().split()]

try:
    list(make(installed(), "engine", {"name": "ray", "address": "nonsense"}).run(Sums(), [[1]]))
except UsageError as error:
    missing = str(error)
told = make(installed(), "engine", {"name": "ray", "cpus_per_worker": 0.5}).run(Sums(), [[k] for k in range(20)])
first, during = next(told), len(children())
told.close()
until = time.monotonic() + 20
while children() and time.monotonic() < until:
    time.sleep(0.1)
print(json.dumps({"missing": missing, "first": first, "during": during, "left": len(children())}))
"""


def last_words() -> str:
    """What the newest Ray wrote into its own logs: where its C++ part ends the process, nothing else tells why."""
    logs = Path(tempfile.gettempdir()) / "ray/session_latest/logs"
    found = [path for name in ("python-core-driver-*.log", "gcs_server.*", "raylet.*") for path in logs.glob(name)]
    return "\n".join(f"{path.name}: {line}" for path in found for line in path.read_text().splitlines()[-8:])


def test_alone_it_starts_a_ray_and_leaves_no_process_and_no_word() -> None:
    """In a process of its own: stdout belongs to the command's answer, whatever befalls a worker."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "RAY_ADDRESS": ""},
    )
    assert (done.returncode, done.stderr) == (0, ""), last_words()
    told = json.loads(done.stdout)
    place, total = told["first"]
    assert place == total
    assert told["during"] > 0
    assert told["left"] == 0
    assert told["missing"].startswith("Ray cannot be reached: ")
    assert told["missing"].endswith(
        "\n  where: address 'nonsense' of engine 'ray'\n  to do: check the address and that the cluster runs, or leave "
        "'address' out to start a Ray here"
    )


BORROWED = """
import os, signal
import ray
from recdistill_core.config import make
from recdistill_core.registry import installed
from recdistill_core.testing.engine_jobs import Sums

ray.init("local", num_cpus=2, include_dashboard=False)
handler = signal.getsignal(signal.SIGTERM)
told = sorted(make(installed(), "engine", {"name": "ray"}).run(Sums(), [[k] for k in range(4)]))
print("told", told, ray.is_initialized(), signal.getsignal(signal.SIGTERM) is handler)
"""


def test_a_ray_that_is_there_is_used_and_left_running() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BORROWED],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert "told [(0, 0), (1, 1), (2, 2), (3, 3)] True True" in done.stdout.splitlines()
