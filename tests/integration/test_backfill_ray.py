"""Back-fill over Ray: two workers, one of them killed mid-way, give the labels of one process, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_cases import Verb, answer, config, run_of

pytest.importorskip("ray")

from recdistill_core.config import make
from recdistill_core.engine import Engine, Job
from recdistill_core.registry import installed
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline.backfill import Filled, backfill
from recdistill_pipeline.teacher_of_run import TeacherOfRun

pytestmark = pytest.mark.slow
BLOCK = 150


@pytest.fixture(scope="module")
def template(feed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a teacher of the first quarter of the rows; read-only."""
    out = tmp_path_factory.mktemp("ray") / "run"
    run_of(out, config(feed_path, students=["mlp"], seeds=[1], split={"test_from": "25%"})).teachers()
    return out


@dataclass(frozen=True)
class Dying:
    """The job ``job``, whose worker is killed after its third block, before anybody is told of it; once."""

    job: Job
    mark: Path
    done: list[int] = field(default_factory=list)

    def open(self) -> Callable[[Any], Any]:
        do, done = self.job.open(), []

        def dies(block: Any) -> Any:
            told = do(block)
            done.append(block)
            if len(done) == 3:
                try:
                    self.mark.touch(exist_ok=False)
                except FileExistsError:
                    return told
                os.kill(os.getpid(), signal.SIGKILL)
            return told

        return dies


@dataclass(frozen=True)
class Killing:
    """An engine in which a worker of ``engine`` dies."""

    engine: Engine
    mark: Path

    def run(self, job: Job, blocks: Any) -> Any:
        return self.engine.run(Dying(job, self.mark), blocks)


def fill(run: Path, engine: Engine) -> Filled:
    return backfill(TeacherOfRun.of(run), engine, block_rows=BLOCK)


def labels(run: Path, version: str) -> tuple[bytes, bytes]:
    signal = ParquetLogitStore(run / "labels").read(version, np.arange(3000))
    return signal.logits["click"].numpy().tobytes(), signal.valid["click"].numpy().tobytes()


def test_a_killed_worker_changes_no_label(template: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(template, tmp_path / name)
    alone = fill(tmp_path / "one", make(installed(), "engine", "local"))
    assert alone.blocks == 15
    ray = make(installed(), "engine", {"name": "ray", "workers": 2, "cpus_per_worker": 0.5})
    mark = tmp_path / "killed"
    shared = fill(tmp_path / "two", Killing(ray, mark))
    assert mark.exists()
    assert (shared.version, shared.blocks) == (alone.version, alone.blocks)
    assert labels(tmp_path / "two", alone.version) == labels(tmp_path / "one", alone.version)
    one, two = (ParquetLogitStore(tmp_path / name / "labels") for name in ("one", "two"))
    entry = two.versions()[-1]
    assert entry.count == one.versions()[-1].count == alone.added
    assert entry.duplicates == BLOCK  # the block that was done twice
    commits = [commit for commit in two.log() if commit["actions"][0]["do"] == "add"]
    assert len({commit["by"] for commit in commits[1:]}) >= 2  # the teacher's own commit is the first one
    assert len(commits) == len([commit for commit in one.log() if commit["actions"][0]["do"] == "add"]) + 1
    assert [finding for finding in two.verify() if finding.severity.value == "error"] == []


def test_the_verb_takes_the_engine_by_name(recdistill: Verb, template: Path, tmp_path: Path) -> None:
    shutil.copytree(template, tmp_path / "run")
    words = ("labels", "backfill", tmp_path / "run", "workers=1", "cpus_per_worker=0.5", "--engine", "ray")
    found = answer(recdistill(*words, "--block-rows", 1000, "--json"))
    assert (found["added"], found["blocks"]) == (2250, 3)
