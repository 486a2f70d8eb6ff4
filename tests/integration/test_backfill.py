"""Back-fill: a teacher that is there labels what has no label, without a leak, block by block, once."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_cases import Verb, answer, config, refused, run_of

from recdistill_core.engine import Job
from recdistill_core.errors import DataError, LeakError, UsageError
from recdistill_core.interfaces import CaptureMode
from recdistill_lightning import TrainedExamples
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline.backfill import Filled, backfill
from recdistill_pipeline.teacher_of_run import TeacherOfRun

QUICK: dict[str, Any] = {"students": ["mlp"], "seeds": [1]}
#: Trained on rows 750 to 2250, so that earlier and later rows have no label.
SPLIT = {"train_from": "25%", "test_from": "75%"}


class Here:
    """Does the blocks in this process, from a pickled job; fails before the block ``fails``."""

    def __init__(self, fails: int = -1) -> None:
        self.fails = fails

    def run(self, job: Job, blocks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        work = pickle.loads(pickle.dumps(job)).open()
        for place, block in enumerate(blocks):
            if place == self.fails:
                raise KeyboardInterrupt
            yield place, work(block)


@pytest.fixture
def trained(feed_path: Path, tmp_path: Path, template: Path) -> Path:
    """A copy of a run with a teacher."""
    import shutil

    out = tmp_path / "run"
    shutil.copytree(template, out)
    return out


@pytest.fixture(scope="module")
def template(feed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("backfill") / "run"
    run_of(out, config(feed_path, **QUICK, split=SPLIT)).teachers()
    return out


def labels(out: Path, version: str) -> np.ndarray[Any, Any]:
    """``[3000]`` logits of a version by example, NaN where it has none."""
    signal = ParquetLogitStore(out / "labels").read(version, np.arange(3000))
    return np.where(signal.valid["click"].numpy(), signal.logits["click"].numpy(), np.nan)


def fill(out: Path, **settings: Any) -> Filled:
    return backfill(TeacherOfRun.of(out), settings.pop("engine", Here()), block_rows=200, **settings)


def test_only_rows_whose_outcome_cannot_have_reached_the_teacher_get_a_label(
    trained: Path, feed: ParquetSource
) -> None:
    store = ParquetLogitStore(trained / "labels")
    (own,) = store.versions()
    seen = TrainedExamples.load(trained / "seed-1/teacher/trained_on.npy")
    told: list[tuple[int, int]] = []
    found = fill(trained, progress=lambda done, total: told.append((done, total)))
    assert (found.missing, found.mode, found.unscored) == (1500, "out_of_fold", 0)
    reached = seen.reached(feed, np.arange(3000))
    assert found.reached == int(reached[:750].sum()) > 100
    assert found.added == 1500 - found.reached
    valid = ~np.isnan(labels(trained, found.version))
    assert np.array_equal(valid, ~reached)
    assert told[-1] == (found.blocks, found.blocks)
    entry = store.versions()[-1]
    assert (entry.mode, entry.count, entry.version) == (CaptureMode.OUT_OF_FOLD, found.added, found.version)
    assert entry.facts["trained_until"] == seen.until(feed)
    assert own.version != entry.version
    # one commit a block
    assert sum(commit["actions"][0]["do"] == "add" for commit in store.log()) == found.blocks + 1
    teacher = TeacherOfRun.of(trained)
    model = teacher.teacher(teacher.plan(), feed)
    assert model.fingerprint() == found.version
    again = fill(trained)
    assert (again.added, again.blocks, again.snapshot) == (0, 0, found.snapshot)
    assert (again.missing, again.reached) == (found.reached, found.reached)


def test_a_job_that_ended_early_goes_on_and_ends_equal(trained: Path, template: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(template, tmp_path / "whole")
    whole = fill(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fill(trained, engine=Here(fails=3))
    part = np.isnan(labels(trained, whole.version))
    assert 0 < (~part).sum() < whole.added
    found = fill(trained)
    assert found.blocks == whole.blocks - 3
    one, two = labels(trained, whole.version), labels(tmp_path / "whole", whole.version)
    assert np.array_equal(one.astype(np.float32).view(np.int32), two.astype(np.float32).view(np.int32))


def test_back_filled_test_rows_let_others_measure_against_published_labels(
    trained: Path, feed_path: Path, tmp_path: Path
) -> None:
    own = json.loads((trained / "seed-1/teacher/manifest.json").read_text())["labels"]["version"]
    found = fill(trained, rows=np.arange(2250, 3000))
    assert (found.added, found.reached) == (750, 0)
    wanted = {"versions": [own[:12], found.version], "policy": "any_of"}
    plain = config(feed_path, **QUICK, split=SPLIT, store={"path": str(trained / "labels")}, labels=wanted)
    theirs = run_of(tmp_path / "theirs", plain).all()
    run = run_of(trained, config(feed_path, **QUICK, split=SPLIT))
    mine = run.all()
    one, two = (
        pq.read_table(out / "predictions/seed-1-teacher.parquet")["logit"].to_numpy()
        for out in (tmp_path / "theirs", trained)
    )
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)
    # rows of one request that show one item have equal logits, and rounding decides how many of them tie
    assert theirs["teacher"]["auc"] == pytest.approx(mine["teacher"]["auc"], abs=1e-4)
    assert theirs["distilled"]["auc"] == mine["distilled"]["auc"]
    assert theirs["capture"] == "mixed"


def test_revoked_labels_are_a_gap_that_another_teacher_fills(trained: Path, feed_path: Path, tmp_path: Path) -> None:
    store = ParquetLogitStore(trained / "labels")
    (own,) = store.versions()
    store.revoke(own.version, reason="a bad snapshot")
    with pytest.raises(LeakError, match="the outcomes of all 1,500 rows without a label can have reached"):
        fill(trained, rows=np.arange(750, 2250))
    assert [entry.version for entry in store.versions()] == [own.version]
    found = fill(trained, rows=np.arange(750, 2250), allow_leaky=True)
    assert (found.added, found.reached, found.mode) == (1500, 0, "leaky")
    with pytest.raises(LeakError, match="holds leaky labels; out_of_fold ones cannot join them"):
        fill(trained, rows=np.arange(2250, 3000))
    store.revoke(found.version, reason="leaky")
    with pytest.raises(UsageError, match=f"labels of version '{found.version}' are revoked: leaky"):
        fill(trained, allow_leaky=True)


def test_an_external_teacher_fills_what_it_knows(feed: ParquetSource, feed_path: Path, tmp_path: Path) -> None:
    truth = feed.truth("click")
    assert truth is not None
    scores = {"example_id": feed.column("example_id"), "probability_click": truth}
    pq.write_table(pa.table(scores), tmp_path / "scores.parquet")
    teacher = {"name": "scores_file", "path": str(tmp_path / "scores.parquet"), "scale": "probability"}
    out = tmp_path / "run"
    run_of(out, config(feed_path, **QUICK, split=SPLIT, teacher=teacher)).teachers()
    found = fill(out)
    assert (found.missing, found.added, found.reached, found.mode) == (750, 750, 0, "external")
    (entry,) = ParquetLogitStore(out / "labels").versions()
    assert (entry.count, entry.version) == (3000, found.version)
    assert np.allclose(1 / (1 + np.exp(-labels(out, found.version))), truth, atol=1e-6)


def test_rows_unknown_to_the_teacher_are_told(feed: ParquetSource, feed_path: Path, tmp_path: Path) -> None:
    truth = feed.truth("click")
    assert truth is not None
    scores = {"example_id": feed.column("example_id")[700:], "probability_click": truth[700:]}
    pq.write_table(pa.table(scores), tmp_path / "scores.parquet")
    teacher = {"name": "scores_file", "path": str(tmp_path / "scores.parquet"), "scale": "probability"}
    out = tmp_path / "run"
    run_of(out, config(feed_path, **QUICK, split=SPLIT, teacher=teacher)).teachers()
    found = fill(out)
    assert (found.missing, found.added, found.unscored) == (750, 50, 700)
    store = ParquetLogitStore(out / "labels")
    assert store.versions()[0].count == 2300


def test_what_is_not_there(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this is no run directory"):
        TeacherOfRun.of(tmp_path / "none")
    with pytest.raises(UsageError, match=r"no finished teacher seed-7/teacher\n.*it has seed-1/teacher\n"):
        TeacherOfRun.of(trained, 7)
    with pytest.raises(UsageError, match="no finished teacher seed-1/teacher-fold-0"):
        TeacherOfRun.of(trained, step="teacher-fold-0")
    with pytest.raises(UsageError, match="block_rows must be >= 1, got 0"):
        backfill(TeacherOfRun.of(trained), Here(), block_rows=0)
    with pytest.raises(DataError, match="no version 'nobody'"):
        fill(trained, versions=["nobody"])


def test_the_verb_says_what_it_did_and_what_it_left(
    recdistill: Verb, trained: Path, feed: ParquetSource, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"example_id": np.arange(0, 3000, 2)}), tmp_path / "even.parquet")
    words = ("labels", "backfill", trained, "--block-rows", 200)
    half = answer(recdistill(*words, "--since", "75%", "--examples", tmp_path / "even.parquet", "--json"))
    first = int(np.searchsorted(feed.column("event_time"), feed.column("event_time")[2250]))
    assert half["added"] == len(range(first + first % 2, 3000, 2))
    assert half["mode"] == "out_of_fold"
    until = str(feed.column("event_time")[600])
    code, out, _ = recdistill(*words, "--until", until)
    assert code == 0
    assert f"labels of version {half['version']} (out_of_fold) in" in out
    assert "rows left out: their outcomes can have reached this teacher" in out
    assert answer(recdistill(*words, "--json"))["added"] > 0
    code, out, _ = recdistill(*words, "--since", "90%")
    assert (code, "every row has a label" in out) == (0, True)
    refused(
        recdistill(*words, "--since", "80%", "--until", "70%", "--json"), "UsageError", "no row of the dataset lies"
    )
    refused(recdistill(*words, "--since", "soon", "--json"), "UsageError", "'soon' is no time", "--since")
    refused(recdistill(*words, "--seed", 9, "--json"), "UsageError", "no finished teacher seed-9/teacher")
    refused(recdistill(*words, "--engine", "nobody", "--json"), "PluginError", "nobody")
    refused(recdistill(*words, "warp=9", "--json"), "ConfigError", "warp")


def test_an_interrupted_verb_says_what_to_do(recdistill: Verb, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recdistill_pipeline import backfill as module

    def stopped(*arguments: Any, **settings: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "backfill", stopped)
    code, _, err = recdistill("labels", "backfill", trained)
    assert code == 130
    assert "finished blocks are committed, and the same command does the rest" in " ".join(err.split())
