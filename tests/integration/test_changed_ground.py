"""A run whose dataset, store or files changed between its steps: nothing is mixed that does not belong together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pipeline_cases import config, run_of, simulated

from recdistill_core.engine import Job
from recdistill_core.errors import DataError, IntegrityError, UsageError
from recdistill_core.interfaces import CaptureMode
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.dataset_writer import write_dataset
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline.backfill import backfill
from recdistill_pipeline.teacher_of_run import TeacherOfRun
from recdistill_select.jobs import judge

QUICK: dict[str, Any] = {"students": ["mlp"], "seeds": [1]}


class Here:
    """Does the blocks in this process."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        if not blocks:
            return
        work = job.open()
        yield from ((place, work(block)) for place, block in enumerate(blocks))


class Elsewhere:
    """Workers that commit to a store that nobody else sees."""

    def run(self, job: Job, blocks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        yield from ((place, {"added": len(block), "unscored": 0}) for place, block in enumerate(blocks))


@pytest.fixture(scope="module")
def template(feed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and a run on it with a teacher; read-only."""
    home = tmp_path_factory.mktemp("ground")
    shutil.copytree(feed_path, home / "dataset")
    run_of(home / "run", config(home / "dataset", **QUICK)).teachers()
    return home


@pytest.fixture
def taught(template: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    shutil.copytree(template / "run", tmp_path / "run")
    return tmp_path / "run"


def publish(store: Path, version: str, rows: slice, **changes: Any) -> None:
    """Labels of somebody else's teacher."""
    settings = {"mode": CaptureMode.EXTERNAL, "view": "v", "facts": {}, **changes}
    ids = torch.arange(3000)[rows]
    with ParquetLogitStore(store).writer(version, tasks=["click"], **settings) as writer:
        writer.append(ids, {"click": 0.001 * ids - 1.0}, step=-1, scored_at=1)
        writer.commit()


def scores(path: Path, feed: ParquetSource, rows: slice) -> dict[str, str]:
    """An external teacher that knows the true probabilities of some rows."""
    truth = feed.truth("click")
    assert truth is not None
    pq.write_table(pa.table({"example_id": feed.column("example_id")[rows], "probability_click": truth[rows]}), path)
    return {"name": "scores_file", "path": str(path), "scale": "probability"}


def test_a_run_does_not_go_on_with_another_dataset(feed_path: Path, tmp_path: Path) -> None:
    home, out = tmp_path / "dataset", tmp_path / "run"
    write_dataset(simulated(seed=99), home)  # nothing came of this one
    plain = config(home, **QUICK)
    run_of(out, plain).dataset()
    shutil.rmtree(home)
    shutil.copytree(feed_path, home)
    run_of(out, plain).teachers()
    snapshot = ParquetSource(feed_path).snapshot_id
    assert json.loads((out / "dataset.json").read_text()) == {"snapshot": snapshot}
    shutil.rmtree(home)
    write_dataset(simulated(seed=99), home)
    with pytest.raises(UsageError, match=f"the dataset is another one .*: {snapshot} -> "):
        run_of(out, plain).students()
    with pytest.raises(UsageError, match=f"the dataset is another one .*: {snapshot} -> "):
        backfill(TeacherOfRun.of(out), Here())
    shutil.rmtree(home)
    write_dataset(simulated(), home)  # the same log imported again is the same dataset
    run_of(out, plain).students()


@pytest.mark.parametrize("change", ["absent", "other"])
def test_without_the_list_of_what_it_was_trained_on_a_teacher_labels_nothing(taught: Path, change: str) -> None:
    store = ParquetLogitStore(taught / "labels")
    store.revoke(store.versions()[0].version, reason="a gap")
    home = taught / "seed-1/teacher/trained_on.npy"
    if change == "absent":
        home.unlink()
    else:
        np.save(home, np.empty(0, np.int64))
    with pytest.raises(IntegrityError, match="a file of the run is absent or was changed"):
        backfill(TeacherOfRun.of(taught), Here())
    assert len(store.versions()) == 1


def test_a_run_that_trained_no_teacher_has_none_to_fill_gaps_with(feed_path: Path, tmp_path: Path) -> None:
    publish(tmp_path / "labels", "theirs", slice(None))
    plain = config(feed_path, **QUICK, store={"path": str(tmp_path / "labels")}, labels={"versions": ["theirs"]})
    run_of(tmp_path / "run", plain).teachers()
    with pytest.raises(UsageError, match="the run trained no hstu: the labels of step seed-1/teacher came from"):
        backfill(TeacherOfRun.of(tmp_path / "run"), Here())


def test_students_without_any_label_are_refused(taught: Path, template: Path, tmp_path: Path) -> None:
    plain = config(template / "dataset", **QUICK)
    run = run_of(taught, plain)
    (own,) = run.store.versions()
    ParquetLogitStore(taught / "labels").revoke(own.version, reason="a bad snapshot")
    with pytest.raises(DataError, match="none of the students' training rows has a label") as caught:
        run.students()
    assert f"revoked: {own.version} (a bad snapshot)" in str(caught.value)
    ParquetLogitStore(taught / "labels").restore(own.version)
    run.students()
    assert (taught / "seed-1/mlp-distilled/manifest.json").exists()


def test_a_fold_whose_labels_are_gone_is_named(feed_path: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "run", config(feed_path, **QUICK, capture={"mode": "out_of_fold", "folds": 2})
    run_of(out, plain).teachers()
    shutil.rmtree(out / "labels")
    shutil.rmtree(out / "seed-1/teacher")
    with pytest.raises(DataError, match="which fold 1 of seed 1 has made") as caught:
        run_of(out, plain).teachers()
    assert "2 of 2 folds; the store has none" in str(caught.value)


def test_a_back_fill_does_not_count_labels_of_another_dataset(taught: Path) -> None:
    publish(taught / "labels", "theirs", slice(2250, 3000), facts={"dataset": "elsewhere"})
    with pytest.raises(IntegrityError, match="labels of version 'theirs' were made for dataset elsewhere"):
        backfill(TeacherOfRun.of(taught), Here(), versions=["theirs"])


def test_labels_that_workers_left_in_another_store_are_missed(taught: Path) -> None:
    with pytest.raises(IntegrityError, match="750 labels were committed, and none of them is in this store"):
        backfill(TeacherOfRun.of(taught), Elsewhere(), rows=np.arange(2250, 3000))


def test_a_back_fill_says_what_mode_the_labels_have(taught: Path) -> None:
    store = ParquetLogitStore(taught / "labels")
    store.revoke(store.versions()[0].version, reason="a gap")
    assert backfill(TeacherOfRun.of(taught), Here(), allow_leaky=True).mode == "leaky"
    again = backfill(TeacherOfRun.of(taught), Here())
    assert (again.blocks, again.mode) == (0, "leaky")


def test_the_labels_of_all_copies_are_judged(feed_path: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "run", config(feed_path, **QUICK, capture={"mode": "out_of_fold", "folds": 2})
    run = run_of(out, plain)
    run.teachers()
    run.students()
    found = judge(run, settings={}, out=tmp_path / "rejected.parquet")
    assert found["labelled"] == 2250
    assert found["version"] == ", ".join(entry.version for entry in run.store.versions())


def test_what_others_cannot_give_is_found_before_the_teacher_is_trained(feed_path: Path, tmp_path: Path) -> None:
    labels = {"versions": ["own", "nobody"], "policy": "any_of"}
    with pytest.raises(DataError, match="the label store has no version 'nobody'"):
        run_of(tmp_path / "run", config(feed_path, **QUICK, labels=labels)).teachers()
    assert not (tmp_path / "run/seed-1").exists()


def test_a_mixture_covers_together_and_the_report_says_what_is_in_it(
    feed: ParquetSource, feed_path: Path, tmp_path: Path
) -> None:
    teacher = scores(tmp_path / "scores.parquet", feed, slice(1000, 3000))
    publish(tmp_path / "labels", "theirs", slice(0, 1000), mode=CaptureMode.OUT_OF_FOLD)
    plain = config(
        feed_path,
        **QUICK,
        teacher=teacher,
        store={"path": str(tmp_path / "labels")},
        labels={"versions": ["own", "theirs"], "policy": "any_of"},
        capture={"min_coverage": 0.9},
    )
    results = run_of(tmp_path / "run", plain).all()
    assert (results["capture"], results["capture_modes"]) == ("mixed", ["external", "out_of_fold"])
    assert results["data"]["coverage"] == {"mlp": 1.0}
    text = (tmp_path / "run/summary.md").read_text()
    assert "**Mixed labels.** The students learnt from labels of several kinds: external, out_of_fold." in text
    assert "The teacher of the external ones was not trained here." in text
    assert "**External labels.**" not in text
