"""What a teacher was trained on, and capture after training: refused, out of fold, or marked as leaky."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_cases import data_module, fit, teacher_module

from recdistill_core.errors import DataError, IntegrityError, LeakError, UsageError
from recdistill_core.interfaces import CaptureMode
from recdistill_lightning import LogitCapture, TeacherModule, TrainedExamples, capture_after_training
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore


@pytest.fixture(scope="module")
def fitted(feed: ParquetSource) -> TeacherModule:
    """A teacher trained on rows 0 to 999; read-only."""
    module = teacher_module(feed)
    fit(module, data_module(feed, module, rows=1000))
    return module


def batches(source: ParquetSource, module: TeacherModule, *ranges: tuple[int, int]) -> list[object]:
    return [source.batch(np.arange(*part), module.history) for part in ranges]


def test_the_module_remembers_what_it_was_trained_on(feed: ParquetSource, fitted: TeacherModule) -> None:
    np.testing.assert_array_equal(fitted.trained.ids(), np.arange(1000))
    assert fitted.trained.known(np.array([0, 999, 1000, -5])).tolist() == [True, True, False, False]
    assert not TrainedExamples().known(np.array([3])).any()


def test_examples_of_an_earlier_fit_are_refused(feed: ParquetSource, fitted: TeacherModule, tmp_path: Path) -> None:
    module, store = copy.deepcopy(fitted), ParquetLogitStore(tmp_path)
    with pytest.raises(LeakError, match="were trained on in an earlier fit"):
        fit(module, data_module(feed, module, rows=1200), LogitCapture(store))
    assert store.versions() == ()


def test_one_callback_in_two_fits_still_refuses(feed: ParquetSource, tmp_path: Path) -> None:
    module, callback = teacher_module(feed), LogitCapture(ParquetLogitStore(tmp_path))
    fit(module, data_module(feed, module, rows=300), callback)
    with pytest.raises(LeakError, match="were trained on in an earlier fit"):
        fit(module, data_module(feed, module, rows=300), callback)


def test_restored_weights_bring_their_list(feed: ParquetSource, fitted: TeacherModule, tmp_path: Path) -> None:
    fitted.trained.save(tmp_path / "trained_on.npy")
    module = teacher_module(feed)
    module.load_state_dict(fitted.state_dict())
    callback = LogitCapture(
        ParquetLogitStore(tmp_path / "store"), trained=TrainedExamples.load(tmp_path / "trained_on.npy")
    )
    with pytest.raises(LeakError, match="were trained on in an earlier fit"):
        fit(module, data_module(feed, module), callback)


def test_lightning_checkpoints_carry_the_list(feed: ParquetSource, tmp_path: Path) -> None:
    module = teacher_module(feed)
    trainer = fit(module, data_module(feed, module, rows=500))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    again = teacher_module(feed)
    again.on_load_checkpoint(checkpoint)
    np.testing.assert_array_equal(again.trained.ids(), np.arange(500))
    again.on_load_checkpoint({})  # of somebody else's making


def test_new_examples_are_stored_out_of_fold(feed: ParquetSource, fitted: TeacherModule, tmp_path: Path) -> None:
    store, parts = ParquetLogitStore(tmp_path), batches(feed, fitted, (1000, 1100), (1100, 1200))
    version = capture_after_training(fitted, parts, store, source=feed, view="v", facts={"dataset": "d"})  # type: ignore[arg-type]  # batches, as object
    assert (version.mode, version.count, version.tasks) == (CaptureMode.OUT_OF_FOLD, 200, ("click",))
    assert version.version == fitted.teacher.fingerprint()
    signal = store.read(version.version, np.arange(1000, 1200))
    wanted = fitted.teacher.score(feed.batch(np.arange(1000, 1100), fitted.history)).logits["click"]
    assert bool(signal.valid["click"].all())
    assert torch.equal(signal.logits["click"][:100], wanted)


def test_trained_on_examples_are_refused_and_leave_nothing(
    feed: ParquetSource, fitted: TeacherModule, tmp_path: Path
) -> None:
    store = ParquetLogitStore(tmp_path, segment_rows=10)
    parts = batches(feed, fitted, (1000, 1100), (990, 1000))
    with pytest.raises(LeakError, match="would put their labels into the logits"):
        capture_after_training(fitted, parts, store, source=feed, view="v", facts={})  # type: ignore[arg-type]  # batches, as object
    user, time = feed.column("user_id"), feed.column("event_time")
    (earlier,) = batches(feed, fitted, (1000, 1100))
    last = 1100 + int(np.flatnonzero(np.isin(user[1100:], user[1000:1100]) & (time[1100:] > time[1099]))[0])
    same = int(((user[1000:1100] == user[last]) & (time[1000:1100] < time[last])).sum())
    assert same
    with pytest.raises(LeakError, match=f"{same} of 100 examples of a batch, or later rows of their users"):
        capture_after_training(
            fitted,
            [earlier],  # type: ignore[list-item]  # a batch, as object
            store,
            source=feed,
            trained=TrainedExamples(feed.column("example_id")[[last]]),
            view="v",
            facts={},
        )
    with pytest.raises(UsageError, match="nobody can tell whether it was trained on later rows"):
        capture_after_training(fitted, [earlier], store, view="v", facts={})  # type: ignore[list-item]  # a batch, as object
    assert store.versions() == ()
    assert list((tmp_path / "segments").iterdir()) == []


def test_leaky_capture_is_marked(feed: ParquetSource, fitted: TeacherModule, tmp_path: Path) -> None:
    store, parts = ParquetLogitStore(tmp_path), batches(feed, fitted, (0, 100))

    def leak(**settings: bool) -> object:
        return capture_after_training(fitted, parts, store, view="v", facts={}, allow_leaky=True, **settings)  # type: ignore[arg-type]  # batches, as object

    version = leak()
    assert [entry.mode for entry in store.versions()] == [CaptureMode.LEAKY]
    assert leak(resume=True) == version
    leak()
    assert [(entry.count, entry.duplicates) for entry in store.versions()] == [(100, 100)]
    with pytest.raises(LeakError):  # a leaky version never takes honest labels in
        capture_after_training(fitted, batches(feed, fitted, (1000, 1100)), store, source=feed, view="v", facts={})  # type: ignore[arg-type]  # batches, as object


def test_scoring_again_with_other_logits_is_told_what_to_do(
    feed: ParquetSource, fitted: TeacherModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, parts = ParquetLogitStore(tmp_path), batches(feed, fitted, (1000, 1100))
    first = capture_after_training(fitted, parts, store, source=feed, view="v", facts={})  # type: ignore[arg-type]  # batches, as object
    monkeypatch.setattr(type(fitted.teacher), "score", type(fitted.teacher).training_scores)
    for layer in fitted.teacher.modules():  # as a teacher that forgets to switch its dropout off
        if isinstance(layer, torch.nn.Dropout):
            monkeypatch.setattr(layer, "p", 0.5)
            monkeypatch.setattr(layer, "training", True)
    with pytest.raises(LeakError, match=r"an earlier fit has committed labels(.|\n)*give resume=True"):
        capture_after_training(fitted, parts, store, source=feed, view="v", facts={})  # type: ignore[arg-type]  # batches, as object
    assert store.versions() == (first,)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _floats(path: Path) -> None:
    np.save(path, np.zeros(3))


def _archive(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, ids=np.arange(3))


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        _truncate,
        _floats,
        _archive,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x80pickle"),
    ],
    ids=["absent", "truncated", "floats", "archive", "empty", "pickle"],
)
def test_a_damaged_list_is_refused(damage: Callable[[Path], object], tmp_path: Path) -> None:
    path, ids = tmp_path / "trained_on.npy", np.array([5, 1, 5, 2**62, -1])
    trained = TrainedExamples()
    trained.add(ids[:2])
    trained.add(ids[2:])
    trained.save(path)
    np.testing.assert_array_equal(TrainedExamples.load(path).ids(), [-1, 1, 5, 2**62])
    damage(path)
    with pytest.raises(IntegrityError, match="cannot be read") as error:
        TrainedExamples.load(path)
    assert str(path) in str(error.value)
    assert "train the teacher again" in str(error.value)


def test_a_batch_that_shows_a_row_the_future_is_not_scored(
    feed: ParquetSource, fitted: TeacherModule, tmp_path: Path
) -> None:
    batch, store = feed.batch(np.arange(2600, 2700), fitted.history), ParquetLogitStore(tmp_path)
    assert batch.history is not None
    seeing = int((batch.history.row_end > 0).nonzero()[0])
    time = batch.event_time.clone()
    time[seeing] = int(batch.history.events["time"].min())
    with pytest.raises(
        DataError, match=f"row sees an event that is not before it\n  where: batch to score, row {seeing}"
    ):
        capture_after_training(fitted, [replace(batch, event_time=time)], store, view="v", facts={}, allow_leaky=True)
    assert store.versions() == ()


def test_an_action_that_the_dataset_lacks_is_not_scored(
    feed: ParquetSource, fitted: TeacherModule, tmp_path: Path
) -> None:
    batch, store = feed.batch(np.arange(2600, 2700), fitted.history), ParquetLogitStore(tmp_path)
    assert batch.history is not None
    action = batch.history.events["action"].clone()
    action[3] = feed.schema.num_action_codes
    history = replace(batch.history, events={**batch.history.events, "action": action})
    message = r"action code outside \[0, \d+\) of .*\n  where: batch to score.history, event 3"
    with pytest.raises(DataError, match=message):
        capture_after_training(fitted, [replace(batch, history=history)], store, view="v", facts={}, source=feed)
    assert store.versions() == ()
