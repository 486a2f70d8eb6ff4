"""Which labels a run's students learn from: out-of-fold ones, published versions, mixtures, chosen examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pipeline_cases import FLIPPED, config, run_of
from safetensors.torch import load_file

from recdistill_core.errors import ConfigError, DataError, IntegrityError, LeakError, UsageError
from recdistill_core.interfaces import CaptureMode
from recdistill_lightning import TrainedExamples
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore

QUICK: dict[str, Any] = {"students": ["mlp"], "seeds": [1]}


def manifest(out: Path, step: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "seed-1" / step / "manifest.json").read_text())
    return found


def write_ids(path: Path, ids: Any, name: str = "example_id") -> str:
    pq.write_table(pa.table({name: ids}), path)
    return str(path)


def publish(store: Path, feed: ParquetSource, version: str, rows: slice, logit: float, **changes: Any) -> None:
    """Labels of somebody else's teacher."""
    settings = {"mode": CaptureMode.EXTERNAL, "view": "theirs", "facts": {"dataset": feed.snapshot_id}, **changes}
    ids = torch.from_numpy(feed.column("example_id")[rows].copy())
    with ParquetLogitStore(store).writer(version, tasks=["click"], **settings) as writer:
        writer.append(ids, {"click": torch.full(ids.shape, logit)}, step=-1, scored_at=1)
        writer.commit()


@pytest.fixture(scope="module")
def by_user(feed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a teacher that reads its rows twice; read-only."""
    out = tmp_path_factory.mktemp("folds") / "run"
    training = {**config()["teacher_training"], "batch_epochs": 2}
    capture = {"mode": "out_of_fold", "folds": 3}
    run_of(out, config(feed_path, **QUICK, capture=capture, teacher_training=training)).all()
    return out


def test_out_of_fold_labels_come_from_copies_that_have_not_seen_the_row(by_user: Path, feed: ParquetSource) -> None:
    store = ParquetLogitStore(by_user / "labels")
    versions = store.versions()
    assert [entry.mode for entry in versions] == [CaptureMode.OUT_OF_FOLD] * 3
    assert sum(entry.count for entry in versions) == 2250
    ids = feed.column("example_id")
    for number, entry in enumerate(versions):
        home = by_user / f"seed-1/teacher-fold-{number}"
        trained = TrainedExamples.load(home / "trained_on.npy")
        labelled = np.flatnonzero(store.read(entry.version, ids).valid["click"].numpy())
        assert labelled.size == entry.count > 500
        assert not trained.reached(feed, labelled).any()
        assert trained.ids().size == 2250 - entry.count
        assert entry.facts["fold"] == number
        assert entry.facts["trained_until"] == trained.until(feed)
    whole = TrainedExamples.load(by_user / "seed-1/teacher/trained_on.npy")
    assert whole.ids().size == 2250
    labels = manifest(by_user, "mlp-distilled")["labels"]
    assert labels["versions"] == manifest(by_user, "teacher")["labels"]["versions"]
    assert set(labels["versions"]) == {entry.version for entry in versions}
    assert (labels["mode"], labels["policy"]) == ("out_of_fold", "any_of")
    assert labels["coverage"] == {"click": 1.0}
    assert labels["by_version"]["click"] == {entry.version: pytest.approx(entry.count / 2250) for entry in versions}


def test_a_label_does_not_move_the_out_of_fold_logit_of_its_own_example(
    by_user: Path, feed: ParquetSource, twin: ParquetSource, tmp_path: Path
) -> None:
    training = {**config()["teacher_training"], "batch_epochs": 2}
    capture = {"mode": "out_of_fold", "folds": 3}
    plain = config(twin.path, **QUICK, capture=capture, teacher_training=training)
    run_of(tmp_path / "twin", plain).teachers()
    found = []
    for out in (by_user, tmp_path / "twin"):
        store = ParquetLogitStore(out / "labels")
        logits = np.full(2250, np.nan, np.float32)
        for entry in store.versions():
            signal = store.read(entry.version, np.arange(2250))
            valid = signal.valid["click"].numpy()
            logits[valid] = signal.logits["click"].numpy()[valid]
        assert not np.isnan(logits).any()
        found.append(logits.view(np.int32))
    same = found[0] == found[1]
    user = feed.column("user_id")[:2250]
    assert same[FLIPPED]
    # of the copy that was not trained on this user only the user's later rows see the flipped event
    later = (user == user[FLIPPED]) & (np.arange(2250) > FLIPPED)
    assert not same[~later].all()  # the other copies were trained on it
    kept = same[(user == user[FLIPPED]) & ~later]
    assert kept.all()
    assert kept.size


def test_forward_chaining_labels_all_but_the_first_block(feed_path: Path, feed: ParquetSource, tmp_path: Path) -> None:
    capture = {"mode": "out_of_fold", "folds": 2, "fold_by": "time", "min_coverage": 0.6}
    run = run_of(tmp_path / "out", config(feed_path, **QUICK, capture=capture))
    run.teachers()
    run.students()
    store, times = ParquetLogitStore(tmp_path / "out/labels"), feed.column("event_time")
    for number, entry in enumerate(store.versions()):
        trained = TrainedExamples.load(tmp_path / f"out/seed-1/teacher-fold-{number}/trained_on.npy")
        labelled = store.read(entry.version, feed.column("example_id")).valid["click"].numpy()
        until = trained.until(feed)
        assert until is not None
        assert times[labelled].min() > until
    covered = manifest(tmp_path / "out", "mlp-distilled")["labels"]["coverage"]["click"]
    assert covered == pytest.approx(2 / 3, abs=0.02)


def test_an_interrupted_fold_is_the_only_one_done_again(
    feed_path: Path, by_user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recdistill_pipeline import fit

    real, calls = fit.save_weights, []

    def dies(tensors: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(tensors, path)

    training = {**config()["teacher_training"], "batch_epochs": 2}
    plain = config(feed_path, **QUICK, capture={"mode": "out_of_fold", "folds": 3}, teacher_training=training)
    monkeypatch.setattr(fit, "save_weights", dies)
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "out", plain).teachers()
    monkeypatch.setattr(fit, "save_weights", real)
    first = tmp_path / "out/seed-1/teacher-fold-0/model.safetensors"
    before = first.stat().st_mtime_ns
    run_of(tmp_path / "out", plain).all()
    assert first.stat().st_mtime_ns == before
    for step in ("teacher", "mlp-distilled", "teacher-fold-1"):
        path = f"seed-1/{step}/model.safetensors"
        assert (tmp_path / "out" / path).read_bytes() == (by_user / path).read_bytes()


def test_published_versions_need_no_teacher_of_ones_own(by_user: Path, feed_path: Path, tmp_path: Path) -> None:
    folds = manifest(by_user, "teacher")["labels"]["versions"]
    store = {"path": str(by_user / "labels")}
    wanted = {"versions": folds, "policy": "any_of"}
    plain = config(feed_path, **QUICK, store=store, labels=wanted)
    with pytest.raises(DataError, match="no score of task 'click' for 750 of 750 test rows"):
        run_of(tmp_path / "out", plain).all()
    # what others have scored covers the test rows
    feed = ParquetSource(feed_path)
    copy = tmp_path / "labels"
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=3000).astype(np.float32))
    with ParquetLogitStore(copy).writer(
        "theirs", tasks=["click"], mode=CaptureMode.EXTERNAL, view="v", facts={"dataset": feed.snapshot_id}
    ) as writer:
        writer.append(torch.arange(3000), {"click": logits}, step=-1, scored_at=1)
        writer.commit()
    said: list[str] = []
    plain = config(
        feed_path,
        **QUICK,
        store={"path": str(copy)},
        labels={"versions": ["theirs"]},
        capture={"warmup_steps": 3},
    )
    results = run_of(tmp_path / "two", plain, said.append).all()
    (idle,) = [line for line in said if "no teacher is trained" in line]
    assert set(idle.removeprefix("labels are read, no teacher is trained; without effect: ").split(", ")) == {
        "teacher_training.lr",
        "teacher_training.batch_size",
        "teacher_training.window_hours",
        "capture.warmup_steps",
    }
    assert not (tmp_path / "two/seed-1/teacher/model.safetensors").exists()
    assert results["capture"] == "external"
    assert results["data"]["teacher_rows"] == 0
    kept = pq.read_table(tmp_path / "two/predictions/seed-1-teacher.parquet")
    assert np.array_equal(kept["logit"].to_numpy(), logits.numpy()[kept["example_id"].to_numpy()])


def test_ones_own_labels_and_published_ones_are_mixed_only_by_a_policy(
    feed: ParquetSource, feed_path: Path, tmp_path: Path
) -> None:
    publish(tmp_path / "labels", feed, "theirs", slice(0, 500), 7.0)
    shared = {"store": {"path": str(tmp_path / "labels")}, "capture": {"warmup_steps": 3}}
    with pytest.raises(ConfigError, match="2 versions need a policy: any_of, latest_before_event or all_of"):
        run_of(tmp_path / "no", config(feed_path, **QUICK, **shared, labels={"versions": ["own", "theirs"]}))
    plain = config(feed_path, **QUICK, **shared, labels={"versions": ["own", "theirs"], "policy": "any_of"})
    results = run_of(tmp_path / "out", plain).all()
    labels = manifest(tmp_path / "out", "mlp-distilled")["labels"]
    own = manifest(tmp_path / "out", "teacher")["labels"]["version"]
    assert labels["versions"] == [own, "theirs"]
    assert labels["policy"] == "any_of"
    assert (labels["mode"], results["capture"]) == ("mixed", "mixed")
    shares = labels["by_version"]["click"]
    assert shares["theirs"] > 0  # rows of the warm-up
    assert shares[own] > 0.5
    assert labels["coverage"]["click"] == pytest.approx(sum(shares.values()))


def test_several_teachers_teach_at_once_with_learnt_weights(
    feed: ParquetSource, feed_path: Path, tmp_path: Path
) -> None:
    publish(tmp_path / "labels", feed, "theirs", slice(0, 3000), 7.0)
    shared = {"store": {"path": str(tmp_path / "labels")}}
    strategy = {"name": "multi_teacher", "weights": [1.0, 1.0], "learned": True, "lr": 0.1}
    labels = {"versions": ["own", "theirs"], "policy": "all_of"}
    run_of(tmp_path / "out", config(feed_path, **QUICK, **shared, labels=labels, strategy=strategy)).all()
    told = manifest(tmp_path / "out", "mlp-distilled")["labels"]
    own = manifest(tmp_path / "out", "teacher")["labels"]["version"]
    assert told["policy"] == "all_of"
    assert told["by_version"]["click"] == {own: 1.0, "theirs": 1.0}
    assert told["coverage"]["click"] == 1.0
    learnt = load_file(tmp_path / "out/seed-1/mlp-distilled/model.safetensors")
    mine, others = learnt["objectives.click.strategy.weights"].softmax(0).tolist()
    assert mine > others  # the other teacher says 7 of everything


def test_weights_that_do_not_fit_the_teachers_are_told_before_one_is_trained(
    feed: ParquetSource, feed_path: Path, tmp_path: Path
) -> None:
    publish(tmp_path / "labels", feed, "theirs", slice(0, 3000), 7.0)
    changes = {
        "store": {"path": str(tmp_path / "labels")},
        "labels": {"versions": ["own", "theirs"], "policy": "all_of"},
    }
    strategy = {"name": "multi_teacher", "weights": [1.0, 1.0, 1.0]}
    with pytest.raises(DataError, match="has 3 weights, and the labels are of 2 teachers"):
        run_of(tmp_path / "out", config(feed_path, **QUICK, **changes, strategy=strategy)).all()
    assert not list(tmp_path.glob("out/seed-1/*"))
    folds = {"capture": {"mode": "out_of_fold", "folds": 2}}  # a copy of the teacher for each fold, and a version each
    run_of(tmp_path / "folds", config(feed_path, **QUICK, **changes, **folds, strategy=strategy)).all()
    assert len(manifest(tmp_path / "folds", "mlp-distilled")["labels"]["versions"]) == 3


def test_chosen_and_left_out_examples(by_user: Path, feed_path: Path, tmp_path: Path) -> None:
    examples = write_ids(tmp_path / "chosen.parquet", np.arange(0, 1000))
    without = write_ids(tmp_path / "rejected.parquet", np.arange(900, 2000))
    plain = config(feed_path, **QUICK, labels={"examples": examples, "without": without})
    run = run_of(tmp_path / "out", plain)
    run.teachers()
    run.students()
    labels = manifest(tmp_path / "out", "mlp-distilled")["labels"]
    assert labels["coverage"]["click"] == pytest.approx(900 / 2250)
    few = config(feed_path, **QUICK, labels={"examples": examples}, capture={"min_coverage": 0.5})
    run = run_of(tmp_path / "few", few)
    run.teachers()
    with pytest.raises(DataError, match=r"cover 44.4% of the training rows"):
        run.students()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "the list of examples cannot be read"),
        ({"id": [1, 2]}, "the list of examples cannot be read"),
        ({"example_id": [1.5]}, "example_id must be integers"),
        ({"example_id": pa.array([1, None])}, "none of them null"),
        ({"example_id": ["a"]}, "example_id must be integers"),
    ],
)
def test_lists_that_are_none(content: Any, text: str, tmp_path: Path) -> None:
    from recdistill_pipeline.student_labels import read_example_ids

    path = tmp_path / "list.parquet"
    if content is not None:
        pq.write_table(pa.table(content), path)
    with pytest.raises(DataError, match=text) as caught:
        read_example_ids(path, "labels.examples")
    assert "labels.examples: " in str(caught.value)


def test_of_judged_labels_only_the_rejected_ones_are_left_out(tmp_path: Path) -> None:
    from recdistill_pipeline.student_labels import read_example_ids

    judged = pa.table({"z": [0.0, 4.0, 1.0], "example_id": [5, 6, 7], "rejected": [False, True, False]})
    pq.write_table(judged, tmp_path / "judged.parquet")
    assert read_example_ids(tmp_path / "judged.parquet", "labels.without").tolist() == [6]


def test_versions_that_do_not_fit_are_refused(feed: ParquetSource, feed_path: Path, tmp_path: Path) -> None:
    store = tmp_path / "labels"
    publish(store, feed, "other", slice(None), 0.5, facts={"dataset": "elsewhere"})
    publish(store, feed, "leaky", slice(None), 0.5, mode=CaptureMode.LEAKY)

    def start(versions: list[str], **changes: Any) -> Any:
        labels = {"versions": versions, **changes.pop("labels", {})}
        out = tmp_path / f"out-{'-'.join(versions)}-{len(changes)}"
        return run_of(out, config(feed_path, **QUICK, store={"path": str(store)}, labels=labels, **changes)).teachers

    with pytest.raises(DataError, match="the label store has no version 'none'"):
        start(["none"])()
    with pytest.raises(IntegrityError, match="were made for dataset elsewhere"):
        start(["other"])()
    start(["other"], labels={"allow_other_dataset": True})()
    with pytest.raises(LeakError, match="the labels of version 'leaky' are leaky"):
        start(["leaky"])()
    start(["leaky"], capture={"allow_leaky": True})()


def test_the_snapshot_that_a_student_read_is_pinned_and_can_be_read_again(
    feed: ParquetSource, feed_path: Path, tmp_path: Path
) -> None:
    home = tmp_path / "labels"
    publish(home, feed, "theirs", slice(None), 0.5)
    store = ParquetLogitStore(home)
    before = store.snapshot_id()
    plain = config(feed_path, **QUICK, store={"path": str(home)}, labels={"versions": ["theirs"]})
    run = run_of(tmp_path / "one", plain)
    run.teachers()
    run.students()
    labels = manifest(tmp_path / "one", "mlp-distilled")["labels"]
    assert labels["store"] == before
    (pin,) = store.pins()
    assert (pin.name, pin.snapshot) == (labels["pin"], before)
    assert pin.by == f"run tiny in {(tmp_path / 'one').resolve()}"
    store.revoke("theirs", reason="a bad snapshot")
    publish(home, feed, "newer", slice(None), -0.5)
    store.gc(0.0)
    assert not run_of(tmp_path / "two", plain).store.read("theirs", np.arange(5)).valid["click"].any()
    with pytest.raises(DataError, match="no score of task 'click' for 750 of 750 test rows"):
        run_of(tmp_path / "two", plain).teachers()
    pinned = {**plain, "labels": {"versions": ["theirs"], "snapshot": before[:12]}}
    again = run_of(tmp_path / "three", pinned)
    again.teachers()
    again.students()
    paths = [tmp_path / out / "seed-1/mlp-distilled/model.safetensors" for out in ("one", "three")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_finished_run_is_measured_against_the_labels_that_it_was_made_with(
    feed: ParquetSource, feed_path: Path, tmp_path: Path
) -> None:
    home = tmp_path / "labels"
    publish(home, feed, "theirs", slice(None), 0.5)
    plain = config(feed_path, **QUICK, store={"path": str(home)}, labels={"versions": ["theirs"]})
    before = run_of(tmp_path / "out", plain).all()
    store = ParquetLogitStore(home)
    facts = manifest(tmp_path / "out", "teacher")["labels"]
    assert facts["store"] == store.snapshot_id()
    assert facts["pin"] in {pin.name for pin in store.pins()}
    store.revoke("theirs", reason="a bad snapshot")
    assert run_of(tmp_path / "out", plain).evaluate()["eta"] == before["eta"]


def test_a_run_says_what_share_of_its_rows_has_labels(feed_path: Path, tmp_path: Path) -> None:
    chosen = write_ids(tmp_path / "chosen.parquet", np.arange(0, 900))
    said: list[str] = []
    run = run_of(tmp_path / "out", config(feed_path, **QUICK, labels={"examples": chosen}), said.append)
    run.teachers()
    run.students()
    assert "mlp, seed 1, had labels for 40.0% of its rows (task click), and outcomes alone elsewhere" in said
    ParquetLogitStore(tmp_path / "out/labels").revoke(
        manifest(tmp_path / "out", "teacher")["labels"]["version"], reason="a bad snapshot"
    )
    plain = config(feed_path, **QUICK, store={"path": str(tmp_path / "out/labels")})
    with pytest.raises(UsageError, match="which this teacher would make again, are revoked: a bad snapshot"):
        run_of(tmp_path / "again", plain).teachers()


@pytest.mark.parametrize(
    ("section", "settings", "text"),
    [
        ("labels", {"policy": "newest"}, "policy must be one of exact, any_of, latest_before_event"),
        ("labels", {"versions": ["a", "a"]}, "versions must be distinct"),
        ("labels", {"snapshot": "0123456789"}, "snapshot is for published versions"),
        ("capture", {"mode": "out_of_fold", "fold_by": "day"}, "fold_by must be one of user, time"),
        ("capture", {"mode": "out_of_fold", "folds": 1}, "folds must be >= 2 by user, got 1"),
        ("capture", {"mode": "out_of_fold", "folds": 0, "fold_by": "time"}, "folds must be >= 1 by time, got 0"),
    ],
)
def test_settings_that_cannot_be(section: str, settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        run_of(tmp_path / "out", config(**{section: settings}))


def test_a_store_without_snapshots_cannot_be_read_at_one(feed_path: Path) -> None:
    from recdistill_core.registry import installed
    from recdistill_pipeline.plan import make_plan
    from recdistill_pipeline.student_labels import published_store

    plan = make_plan(config(feed_path, labels={"versions": ["a"], "snapshot": "0123456789"}), installed())
    with pytest.raises(UsageError, match="a store of the type object cannot be read at a snapshot"):
        published_store(plan, object())  # type: ignore[arg-type]  # a store without snapshots
