"""The labelling job: every row once, whatever ends it early, in a version that mixes with nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_cases import words
from external_cases import ROWS, context_of, logit_of, serving, source_in, status, teacher_of, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill_core.batch import Batch, Scores
from recdistill_core.errors import DataError, IntegrityError, LeakError, UsageError
from recdistill_core.interfaces import CaptureMode, TrainableTeacher
from recdistill_external import ExternalTeacher
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline.label import label_rows

IDS = np.arange(100, 100 + ROWS)
LOGITS = [logit_of(example) for example in IDS.tolist()]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ParquetSource:
    return source_in(tmp_path_factory.mktemp("external") / "dataset")


class Counting:
    """Scores rows and notes which; ``fail_at``: the row at which it gives up; ``ignorant``: examples it knows not."""

    def __init__(self, fail_at: int = -1, ignorant: tuple[int, ...] = ()) -> None:
        self.seen: list[int] = []
        self.fail_at, self.ignorant = fail_at, ignorant

    def __call__(self, batch: Batch) -> list[float]:
        ids = batch.example_id.tolist()
        if self.fail_at in ids:
            raise RuntimeError("the model is gone")
        self.seen += ids
        return [float("nan") if example in self.ignorant else logit_of(example) for example in ids]

    def teacher(self, source: ParquetSource, **changes: Any) -> ExternalTeacher:
        given_ = {"fingerprint": "counting", "scale": "logit", "invalid": "skip", **changes}
        return ExternalTeacher(self, context=context_of(source), **given_)


def stored(store: ParquetLogitStore, version: str) -> tuple[list[float], list[bool]]:
    signal_ = store.read(version, IDS)
    return signal_.logits["click"].tolist(), signal_.valid["click"].tolist()


def test_every_row_is_scored_once_and_stored_as_external(source: ParquetSource, tmp_path: Path) -> None:
    model, store = Counting(), ParquetLogitStore(tmp_path)
    teacher, told = model.teacher(source), []
    done = label_rows(
        teacher,
        source,
        store,
        (0, ROWS),
        ["click"],
        facts={"note": "mine"},
        batch_rows=7,
        commit_rows=20,
        progress=lambda *progress: told.append(progress),
    )
    assert (done.rows, done.known, done.added, done.unscored) == (ROWS, 0, ROWS, 0)
    assert done.version.mode == CaptureMode.EXTERNAL
    assert done.version.version == teacher.fingerprint()
    assert dict(done.version.facts) == {"dataset": source.snapshot_id, "note": "mine"}
    assert done.version.view == source.schema.view_hash()
    assert told == [(21, 60), (42, 60), (60, 60)]
    assert stored(store, teacher.fingerprint()) == (LOGITS, [True] * ROWS)
    again = label_rows(teacher, source, store, (0, ROWS), ["click"])
    assert (again.known, again.added) == (ROWS, 0)
    assert model.seen == IDS.tolist()


@settings(max_examples=25, deadline=None)
@given(
    wanted=st.lists(st.integers(0, ROWS - 1), min_size=1),
    before=st.lists(st.integers(0, ROWS - 1)),
    batch_rows=st.integers(1, 70),
    commit_rows=st.integers(1, 70),
)
def test_jobs_on_any_rows_add_up(
    wanted: list[int], before: list[int], batch_rows: int, commit_rows: int, source: ParquetSource
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model, store = Counting(), ParquetLogitStore(Path(folder))
        teacher = model.teacher(source)
        sizes = {"batch_rows": batch_rows, "commit_rows": commit_rows}
        for rows in (before, wanted):
            if rows:
                label_rows(teacher, source, store, np.array(rows), ["click"], **sizes)
        union = sorted({*before, *wanted})
        assert sorted(model.seen) == [100 + row for row in union]
        assert np.flatnonzero(stored(store, teacher.fingerprint())[1]).tolist() == union


def test_rows_that_the_teacher_does_not_know_get_no_label(source: ParquetSource, tmp_path: Path) -> None:
    model, store = Counting(ignorant=(103, 110, 111, 112)), ParquetLogitStore(tmp_path)
    done = label_rows(model.teacher(source), source, store, (0, ROWS), ["click"], batch_rows=5)
    assert (done.added, done.unscored, done.unscored_examples) == (ROWS - 4, 4, (103, 110, 111))
    valid = stored(store, done.version.version)[1]
    assert np.flatnonzero(~np.array(valid)).tolist() == [3, 10, 11, 12]


def test_a_row_has_logits_of_every_task_or_no_label(tmp_path: Path) -> None:
    both = source_in(tmp_path / "dataset", rows=4, tasks={"click": "click", "like": "like"})
    nan = float("nan")
    teacher = Wrong({"click": torch.tensor([0.0, nan, 1.0, nan]), "like": torch.tensor([0.0, 1.0, nan, nan])})
    store = ParquetLogitStore(tmp_path / "labels")
    done = label_rows(teacher, both, store, (0, 4), ["click", "like"])
    assert (done.added, done.unscored) == (1, 3)
    signal_ = store.read(done.version.version, both.column("example_id"))
    assert [signal_.valid[task].tolist() for task in ("click", "like")] == [[True, False, False, False]] * 2


def test_a_teacher_that_knows_no_row_is_refused(source: ParquetSource, tmp_path: Path) -> None:
    model = Counting(ignorant=tuple(IDS.tolist()))
    with pytest.raises(DataError) as error:
        label_rows(model.teacher(source), source, ParquetLogitStore(tmp_path), (0, ROWS), ["click"])
    words(error, "a score of tasks click for none of the 60 rows", "examples 100, 101, 102", "looked up by")


def test_what_was_scored_before_a_failure_stays(source: ParquetSource, tmp_path: Path) -> None:
    model, store = Counting(fail_at=137), ParquetLogitStore(tmp_path)
    teacher = model.teacher(source)
    with pytest.raises(RuntimeError, match="the model is gone"):
        label_rows(teacher, source, store, (0, ROWS), ["click"], batch_rows=5)
    assert np.flatnonzero(stored(store, teacher.fingerprint())[1]).tolist() == list(range(35))
    model.fail_at = -1
    assert label_rows(teacher, source, store, (0, ROWS), ["click"], batch_rows=5).known == 35
    assert model.seen == IDS.tolist()
    assert stored(store, teacher.fingerprint())[0] == LOGITS


def test_labels_are_committed_as_time_passes(source: ParquetSource, tmp_path: Path) -> None:
    told: list[int] = []
    teacher = Counting().teacher(source)
    label_rows(
        teacher,
        source,
        ParquetLogitStore(tmp_path),
        (0, ROWS),
        ["click"],
        batch_rows=20,
        commit_seconds=0,
        progress=lambda done, total: told.append(done),
    )
    assert told == [20, 40, 60, 60]


JOB = """
import sys
from pathlib import Path
from external_cases import teacher_of
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline.label import label_rows

source = ParquetSource(Path(sys.argv[1]))
settings = {"url": sys.argv[3], "version": "v1", "scale": "logit", "fields": [], "batch_rows": 2, "pause_s": 0.001}
teacher = teacher_of(source, "http", **settings, attempts=30)
store = ParquetLogitStore(Path(sys.argv[2]))
label_rows(teacher, source, store, (0, source.num_rows), ["click"], batch_rows=2, commit_rows=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_killed_job_goes_on_where_it_stopped(seed: int, source: ParquetSource, tmp_path: Path) -> None:
    with serving() as service:
        service.fail_at_random(seed, share=0.3)
        arguments = [sys.executable, "-c", JOB, str(source.path), str(tmp_path / "labels"), service.url]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        kills = 0
        for stop in (12, 30, 48):
            job = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE)
            wait_until(lambda stop=stop, job=job: len(service.scored) >= stop or job.poll() is not None)  # type: ignore[misc]  # a lambda with defaults
            job.send_signal(signal.SIGKILL)
            job.communicate()
            kills += job.returncode == -signal.SIGKILL
        assert kills == 3
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        store = ParquetLogitStore(tmp_path / "labels")
        version = store.versions()[0].version
        assert stored(store, version) == (LOGITS, [True] * ROWS)
        assert store.versions()[0].count == ROWS
        # asked for again: at most the request whose answer was not committed yet when the job was killed
        assert set(service.scored) == set(IDS.tolist())
        assert sum(service.scored.values()) <= ROWS + kills * 2


def test_requests_before_one_that_fails_are_not_asked_for_again(source: ParquetSource, tmp_path: Path) -> None:
    with serving() as service:
        service.fail(None, None, status(400))
        teacher, store = teacher_of(source, "http", **service.settings()), ParquetLogitStore(tmp_path)
        with pytest.raises(DataError, match="refused the request with status 400"):
            label_rows(teacher, source, store, (0, ROWS), ["click"])
        assert sum(stored(store, teacher.fingerprint())[1]) == 16
        label_rows(teacher, source, store, (0, ROWS), ["click"])
        assert set(service.scored.values()) == {1}
        assert stored(store, teacher.fingerprint()) == (LOGITS, [True] * ROWS)


def test_a_service_is_asked_once_for_each_row_whatever_fails(source: ParquetSource, tmp_path: Path) -> None:
    with serving() as service:
        service.fail_at_random(7, share=0.4)
        teacher = teacher_of(source, "http", **service.settings(attempts=30, batch_rows=3))
        store = ParquetLogitStore(tmp_path)
        for rows in ((0, 20), (10, 40), (0, ROWS)):
            label_rows(teacher, source, store, rows, ["click"], batch_rows=8)
        assert set(service.scored.values()) == {1}
        assert stored(store, teacher.fingerprint()) == (LOGITS, [True] * ROWS)
        assert len(service.requests) > len(service.scored) / 3


class Trained(TrainableTeacher):
    """A teacher that recdistill trains."""


class Wrong:
    """Gives whatever it is told to."""

    def __init__(self, logits: dict[str, torch.Tensor]) -> None:
        self.logits = logits

    def score(self, batch: Batch) -> Scores:
        return Scores(self.logits)

    def fingerprint(self) -> str:
        return "0" * 16


@pytest.mark.parametrize(
    ("teacher", "changes", "kind", "expected"),
    [
        (Trained(), {}, UsageError, "Trained is trained by recdistill"),
        (Wrong({}), {"tasks": []}, UsageError, "label_rows needs at least one task"),
        (Wrong({}), {"batch_rows": 0}, UsageError, "batch_rows and commit_rows must be >= 1, got 0 and 100000"),
        (Wrong({}), {}, DataError, "the teacher gave no logits of task 'click' for 60 rows"),
        (Wrong({"click": torch.zeros(1)}), {}, DataError, "the teacher gave shape [1] of task 'click' for 60 rows"),
        (Wrong({}), {"rows": (5, 5)}, DataError, "for none of the 0 rows"),
    ],
)
def test_what_cannot_be_labelled_is_refused(
    teacher: Any, changes: dict[str, Any], kind: type[Exception], expected: str, source: ParquetSource, tmp_path: Path
) -> None:
    given_ = {"rows": (0, ROWS), "tasks": ["click"], **changes}
    with pytest.raises(kind, match=re.escape(expected)):
        label_rows(teacher, source, ParquetLogitStore(tmp_path), **given_)


def test_a_version_that_is_something_else_is_refused(source: ParquetSource, tmp_path: Path) -> None:
    teacher, store = Counting().teacher(source), ParquetLogitStore(tmp_path / "one")
    view = source.schema.view_hash()
    writer = store.writer(teacher.fingerprint(), tasks=["click"], mode=CaptureMode.PREQUENTIAL, view=view, facts={})
    writer.append(torch.tensor([1]), {"click": torch.tensor([0.5])}, step=0, scored_at=0)
    writer.commit()
    with pytest.raises(LeakError, match="with labels of the mode prequential"):
        label_rows(teacher, source, store, (0, 5), ["click"])

    store = ParquetLogitStore(tmp_path / "two")
    label_rows(teacher, source, store, (0, 5), ["click"])
    other = source_in(tmp_path / "dataset", rows=30)
    with pytest.raises(IntegrityError, match=f"for dataset {source.snapshot_id}, and this is {other.snapshot_id}"):
        label_rows(teacher, other, store, (0, 5), ["click"])

    store.revoke(teacher.fingerprint(), reason="a bad snapshot")
    with pytest.raises(UsageError, match="are revoked: a bad snapshot"):
        label_rows(teacher, source, store, (0, 5), ["click"])
