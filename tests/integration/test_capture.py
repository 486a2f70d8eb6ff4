"""Prequential capture: no label reaches the logit that is later distilled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pipeline_cases import FLIPPED, Before, data_module, fit, teacher_module

from recdistill_core.errors import LeakError, UsageError
from recdistill_core.interfaces import CaptureMode, LabelVersion
from recdistill_lightning import LogitCapture, Optimisation, ReadOrder
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore


def captured(store: ParquetLogitStore, version: str = "") -> dict[str, np.ndarray[Any, Any]]:
    """The stored rows of a version (of the only one), by example id."""
    tables = [pq.read_table(path) for path in sorted((store.path / "segments").glob(f"{version}*.parquet"))]
    table = pa.concat_tables(tables).sort_by("example_id")
    return {name: table[name].to_numpy() for name in table.column_names}


def capture(source: ParquetSource, store: Path, order: ReadOrder | None = None, **settings: Any) -> LogitCapture:
    """Train the small teacher with a capture into ``store``; returns the callback."""
    module = teacher_module(source)
    data = data_module(source, module, order=order or ReadOrder(128, 48, "user"))
    callback = LogitCapture(ParquetLogitStore(store), **settings)
    fit(module, data, callback)
    return callback


def committed(callback: LogitCapture) -> LabelVersion:
    assert callback.committed is not None
    return callback.committed


@pytest.mark.parametrize("within", ["user", "time"])
def test_a_label_reaches_no_logit_of_its_own_example_nor_of_an_earlier_step(
    within: str, feed: ParquetSource, twin: ParquetSource, tmp_path: Path
) -> None:
    labels = [source.column("label_click") for source in (feed, twin)]
    assert np.flatnonzero(labels[0] != labels[1]).tolist() == [FLIPPED]
    assert feed.column("example_id")[FLIPPED] == FLIPPED
    rows = []
    for name, source in (("one", feed), ("two", twin)):
        capture(source, tmp_path / name, ReadOrder(batch_size=128, window_hours=48, within=within))
        rows.append(captured(ParquetLogitStore(tmp_path / name)))
    one, two = rows
    np.testing.assert_array_equal(one["example_id"], np.arange(1500))
    np.testing.assert_array_equal(one["step"], two["step"])
    same = one["logit_click"].view(np.int32) == two["logit_click"].view(np.int32)
    step = one["step"][FLIPPED]
    assert 2 < step < one["step"].max() - 2
    assert same[FLIPPED]
    assert same[one["step"] < step].all()
    # within the step only later rows of the same user differ: the flipped event is in their past
    later = (feed.column("user_id") == feed.column("user_id")[FLIPPED])[:1500] & (np.arange(1500) > FLIPPED)
    assert same[(one["step"] == step) & ~later].all()
    # the label was learnt from: the update moves all later logits, but for a chance equality
    assert same[one["step"] > step].mean() < 0.02


def test_a_shuffled_window_is_refused_for_a_later_row_may_bring_the_label_in_its_history(
    feed: ParquetSource, tmp_path: Path
) -> None:
    with pytest.raises(LeakError, match="in a shuffled window the teacher could be trained on a later row"):
        capture(feed, tmp_path, ReadOrder(batch_size=128, window_hours=48, within="shuffle"))
    strict = capture(feed, tmp_path, ReadOrder(batch_size=128, window_hours=0, within="shuffle"))  # is time order
    assert committed(strict).count == 1500


def test_a_captured_logit_is_that_of_the_model_before_the_step(feed: ParquetSource, tmp_path: Path) -> None:
    store, before = ParquetLogitStore(tmp_path), Before()
    module = teacher_module(feed, ("click", "long_view"))
    callback = LogitCapture(store)
    fit(module, data_module(feed, module), callback, before)
    assert len(before.steps) > 12
    for place, (batch, teacher) in enumerate(before.steps):
        signal = store.read(callback.version, batch.example_id.numpy())
        with torch.no_grad():
            wanted = teacher.training_scores(batch).logits
        for task in ("click", "long_view"):
            assert bool(signal.valid[task].all())
            assert torch.equal(signal.logits[task], wanted[task]), f"step {place}, task {task}"
        after = before.steps[place + 1][1] if place + 1 < len(before.steps) else module.teacher
        assert not torch.equal(signal.logits["click"], after.score(batch).logits["click"])
    assert committed(callback).mode is CaptureMode.PREQUENTIAL
    assert committed(callback).count == 1500


def test_a_version_is_captured_once(feed: ParquetSource, tmp_path: Path) -> None:
    first = capture(feed, tmp_path)
    assert capture(feed, tmp_path).version == first.version  # the same labels, which are dropped
    assert [(entry.count, entry.duplicates) for entry in ParquetLogitStore(tmp_path).versions()] == [(1500, 1500)]
    again = capture(feed, tmp_path, seed=9)
    assert again.version != first.version


def test_resume_lets_the_labels_of_the_same_attempt_stand(feed: ParquetSource, tmp_path: Path) -> None:
    first = capture(feed, tmp_path, facts={"run": "a", "sizes": (1, 2)}, resume=True)
    snapshot = ParquetLogitStore(tmp_path).snapshot_id()
    again = capture(feed, tmp_path, facts={"run": "a", "sizes": (1, 2)}, resume=True)
    assert committed(again) == committed(first)
    assert ParquetLogitStore(tmp_path).snapshot_id() == snapshot
    capture(feed, tmp_path, facts={"run": "a", "sizes": (1, 2)})
    assert ParquetLogitStore(tmp_path).versions()[0].duplicates == committed(first).count


def test_a_script_that_is_run_again_is_told_what_to_do(feed: ParquetSource, tmp_path: Path) -> None:
    def script(noise: int, **settings: Any) -> LogitCapture:
        module = teacher_module(feed, dropout=0.2)
        callback = LogitCapture(ParquetLogitStore(tmp_path), **settings)
        torch.manual_seed(noise)  # of the dropout: the weights before the first update are the same
        fit(module, data_module(feed, module), callback)
        return callback

    first = script(1)
    with pytest.raises(LeakError, match="an earlier fit has committed labels of this version") as caught:
        script(2)
    assert "already has another label of version" in str(caught.value)
    for way in (f"read_labels(..., '{first.version}', ...)", "give resume=True", "use another store", "facts={...}"):
        assert way in str(caught.value)
    assert isinstance(caught.value.__cause__, LeakError)
    assert ParquetLogitStore(tmp_path).versions() == (committed(first),)
    assert committed(script(2, resume=True)) == committed(first)
    assert script(2, facts={"attempt": 2}).version != first.version


def test_whatever_makes_the_labels_makes_the_version(feed: ParquetSource, tmp_path: Path) -> None:
    def version(lr: float = 1e-2, order: ReadOrder | None = None, rows: int = 256, **settings: Any) -> str:
        module = teacher_module(feed)
        module.optimisation = Optimisation(lr=lr)
        data = data_module(feed, module, rows=rows, order=order or ReadOrder(128, 48, "user"))
        callback = LogitCapture(ParquetLogitStore(tmp_path), **settings)
        fit(module, data, callback)
        return callback.version

    versions = [version(), version(lr=2e-2), version(order=ReadOrder(64, 48, "user")), version(rows=300)]
    versions += [version(seed=9), version(warmup_steps=1), version(facts={"debiasers": ["pal"]})]
    assert len(set(versions)) == 7
    assert len(ParquetLogitStore(tmp_path).versions()) == 7


def test_several_epochs_and_a_stream_phase_give_one_label_per_example(feed: ParquetSource, tmp_path: Path) -> None:
    module = teacher_module(feed)
    data = data_module(feed, module, stream_from=1000, batch_epochs=3)
    assert data.epochs == 4
    fit(module, data, LogitCapture(ParquetLogitStore(tmp_path)))
    rows = captured(ParquetLogitStore(tmp_path))
    np.testing.assert_array_equal(rows["example_id"], np.arange(1500))
    single = teacher_module(feed)
    once = LogitCapture(ParquetLogitStore(tmp_path / "once"))
    fit(single, data_module(feed, single, rows=1000), once)
    wanted = captured(once.store)  # type: ignore[arg-type]  # the Parquet store of two lines above
    np.testing.assert_array_equal(rows["logit_click"][:1000], wanted["logit_click"])
    np.testing.assert_array_equal(rows["step"][:1000], wanted["step"])
    passes = [sum(1 for _ in data.train_dataloader().sampler)] * 3
    assert rows["step"][1000:].min() == sum(passes)
    assert rows["step"].max() == data.total_steps - 1


def test_warmup_steps_are_not_captured(feed: ParquetSource, tmp_path: Path) -> None:
    plain, warm = capture(feed, tmp_path / "a"), capture(feed, tmp_path / "b", warmup_steps=4)
    assert plain.version != warm.version
    rows, late = (captured(ParquetLogitStore(tmp_path / name)) for name in ("a", "b"))
    assert late["step"].min() == 4
    kept = rows["step"] >= 4
    np.testing.assert_array_equal(late["example_id"], rows["example_id"][kept])
    np.testing.assert_array_equal(late["logit_click"], rows["logit_click"][kept])
    with pytest.raises(UsageError, match="warmup_steps must be >= 0, got -1"):
        LogitCapture(ParquetLogitStore(tmp_path), warmup_steps=-1)


def test_accumulation_loses_no_label_and_counts_updates(feed: ParquetSource, tmp_path: Path) -> None:
    module, store = teacher_module(feed), ParquetLogitStore(tmp_path)
    data = data_module(feed, module)
    trainer = fit(module, data, LogitCapture(store), accumulate_grad_batches=3)
    rows = captured(store)
    np.testing.assert_array_equal(rows["example_id"], np.arange(1500))
    batches = data.total_steps
    assert trainer.global_step == data.updates(3) == -(-batches // 3)
    assert sorted(set(rows["step"].tolist())) == list(range(data.updates(3)))


class Stop(L.Callback):
    """Raises in the middle of training."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 5:
            raise RuntimeError("power cut")


def test_an_exception_leaves_no_label_behind(feed: ParquetSource, tmp_path: Path) -> None:
    module, store = teacher_module(feed), ParquetLogitStore(tmp_path, segment_rows=100)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(module, data_module(feed, module), LogitCapture(store), Stop())
    assert store.versions() == ()
    assert list((tmp_path / "segments").iterdir()) == []
    assert capture(feed, tmp_path).committed is not None  # and nothing stands in the way of a new attempt


class Twice(torch.optim.SGD):
    """An optimizer that looks at the batch again after a first update, as LBFGS does."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        return super().step(closure)


def test_a_logit_from_a_second_pass_over_a_batch_is_refused(feed: ParquetSource, tmp_path: Path) -> None:
    module = teacher_module(feed)
    module.configure_optimizers = lambda: Twice(module.parameters(), lr=0.1)  # type: ignore[method-assign]  # as a user's subclass would
    with pytest.raises(LeakError, match="2 forward passes over one batch"):
        fit(module, data_module(feed, module), LogitCapture(ParquetLogitStore(tmp_path)))
    assert ParquetLogitStore(tmp_path).versions() == ()


def test_capture_needs_a_teacher_and_a_dataset(feed: ParquetSource, tmp_path: Path) -> None:
    callback = LogitCapture(ParquetLogitStore(tmp_path))
    module = teacher_module(feed)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(UsageError, match="needs a TeacherModule, got LightningModule"):
        callback.on_train_start(trainer, L.LightningModule())
    with pytest.raises(UsageError, match="give snapshot and view"):
        callback.on_train_start(trainer, module)
    LogitCapture(ParquetLogitStore(tmp_path), snapshot="s", view="v").on_train_start(trainer, module)
