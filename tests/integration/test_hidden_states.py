"""The hidden-state channel in training: which states are captured, when, and what no label reaches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pipeline_cases import (
    FLIPPED,
    Before,
    data_module,
    fit,
    teacher_module,
)

from recdistill_core.component import BuildContext
from recdistill_core.config import make
from recdistill_core.errors import LeakError, PluginError, UsageError
from recdistill_core.objective import Objective
from recdistill_core.registry import installed
from recdistill_lightning import (
    LogitCapture,
    ReadOrder,
    StateCapture,
    StateCompressor,
    States,
    StateSource,
    StudentModule,
    TrainedExamples,
    states_after_training,
    states_with_later,
)
from recdistill_lightning.states import pack
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_pipeline.scoring import rows_by_user

ROWS = np.arange(1500)


class Compressors(L.Callback):
    """A copy of the compressor before each step; None before the first."""

    def __init__(self, capture: StateCapture) -> None:
        self.capture, self.steps = capture, list[StateCompressor | None]()

    def on_train_batch_start(self, *given: Any) -> None:
        self.steps.append(copy.deepcopy(self.capture.compressor))


class Hidden(L.Callback):
    """The activation of every row as the module hands it out, before anything is rounded."""

    def __init__(self) -> None:
        self.rows: dict[int, torch.Tensor] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert not outputs["hidden"].requires_grad
        self.rows.update(zip(batch.example_id.tolist(), outputs["hidden"], strict=True))


def captured(source: ParquetSource, *others: L.Callback, **settings: Any) -> StateCapture:
    """Fit the small teacher on the first rows; ``of``, ``warmup_steps`` and ``order`` as given."""
    order = {"order": settings.pop("order")} if "order" in settings else {}
    teacher = settings.pop("teacher", {})
    module = teacher_module(source, **teacher)
    callback = StateCapture(4, **settings)
    fit(module, data_module(source, module, **order), *others, callback)
    assert module.hands_out == ""
    return callback


def found(capture: StateCapture) -> States:
    assert capture.states is not None
    return capture.states


def in_row_order(states: States, source: ParquetSource) -> np.ndarray[Any, Any]:
    """``[1500, bytes]``; every row must have one."""
    order = np.argsort(states.example_id)
    ids = source.column("example_id")[:1500]
    place = order[np.searchsorted(states.example_id[order], ids)]
    assert np.array_equal(states.example_id[place], ids)
    return states.packed[place]


@pytest.mark.parametrize("of", ["state", "token", "head"])
def test_a_state_is_of_teacher_and_compressor_before_the_update(feed: ParquetSource, of: str) -> None:
    before = Before()
    callback = StateCapture(4, of=of)
    copies = Compressors(callback)
    module = teacher_module(feed)
    fit(module, data_module(feed, module), before, copies, callback)
    states = found(callback)
    assert len(states) == 1500
    assert not states.after_training.any()
    packed = dict(zip(states.example_id.tolist(), states.packed, strict=True))
    for (batch, teacher), compressor in list(zip(before.steps, copies.steps, strict=True))[1::3]:
        hidden = teacher.training_scores(batch.without_outcomes()).hidden[of]
        assert compressor is not None
        wanted = pack(compressor.codes(hidden).numpy(), 4)
        assert np.array_equal(wanted, np.stack([packed[row] for row in batch.example_id.tolist()]))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_teacher_and_its_labels_are_what_they_are_without(
    feed: ParquetSource, tmp_path: Path, dropout: float
) -> None:
    weights, labels = [], []
    for with_states in (False, True):
        module = teacher_module(feed, dropout=dropout)
        capture = LogitCapture(ParquetLogitStore(tmp_path / str(with_states)))
        fit(module, data_module(feed, module), capture, *([StateCapture(4)] if with_states else []))
        weights.append(module.state_dict())
        store = ParquetLogitStore(tmp_path / str(with_states))
        labels.append(store.read(capture.version, feed.column("example_id")[:1500]).logits["click"])
    assert torch.equal(*labels)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    "order", [ReadOrder(128, 48, "user"), ReadOrder(128, 0, "time")], ids=["windows by user", "strict time"]
)
def test_a_label_reaches_no_state_that_its_row_or_an_earlier_one_reads(
    feed: ParquetSource, twin: ParquetSource, order: ReadOrder
) -> None:
    exact, packed, features, steps = [], [], [], []
    user, time = feed.column("user_id")[:1500], feed.column("event_time")[:1500]
    for source in (feed, twin):
        before, hidden = Before(), Hidden()
        states = found(captured(source, before, hidden, order=order, bits=8))
        exact.append(torch.stack([hidden.rows[row] for row in source.column("example_id")[:1500].tolist()]).numpy())
        packed.append(in_row_order(states, source))
        features.append(StateSource(source, 4, states, recent=4).features(user, time))
        steps.append({int(row): at for at, (batch, _) in enumerate(before.steps) for row in batch.example_id})
    assert steps[0] == steps[1]
    step = np.array([steps[0][row] for row in feed.column("example_id")[:1500].tolist()])
    bits, same, alike = ((two[0] == two[1]).all(axis=1) for two in (exact, packed, features))
    later_of_user = (user == user[FLIPPED]) & (time > time[FLIPPED])
    known = features[0][:, -1] > 0
    # states: of everything that is trained on no later than the flipped row, its own included
    assert bits[(step <= step[FLIPPED]) & ~later_of_user].all()
    assert same[(step <= step[FLIPPED]) & ~later_of_user].all()
    assert bits[step > step[FLIPPED]].mean() < 0.1
    assert same[step > step[FLIPPED]].mean() < 0.9
    # features: of all rows that are read no later, and of its user's rows up to its own moment whatever the order
    assert alike[(step <= step[FLIPPED]) & ~later_of_user].all()
    assert alike[(user == user[FLIPPED]) & (time <= time[FLIPPED])].all()
    assert known[FLIPPED]
    assert alike[(step > step[FLIPPED]) & known].mean() < 0.9
    if order.window_hours == 0:
        assert alike[time <= time[FLIPPED]].all()


def test_the_first_steps_are_left_out_and_the_compressor_learns_from_them(feed: ParquetSource) -> None:
    everything, warm = captured(feed), captured(feed, warmup_steps=3)
    left_out = len(found(everything)) - len(found(warm))
    assert 2 * 128 < left_out <= 3 * 128  # windows end with smaller batches
    assert np.array_equal(found(everything).packed[left_out:], found(warm).packed)


def test_later_passes_are_not_kept(feed: ParquetSource) -> None:
    module = teacher_module(feed)
    callback = StateCapture(4)
    fit(module, data_module(feed, module, batch_epochs=2), callback)
    assert np.array_equal(found(callback).packed, found(captured(feed)).packed)


def test_rows_after_the_fit_get_the_trained_teachers_state_and_trained_ones_are_refused(feed: ParquetSource) -> None:
    module = teacher_module(feed)
    callback = StateCapture(4)
    fit(module, data_module(feed, module), callback)
    later = list(rows_by_user(feed, np.arange(1500, 1900), module.history, 200))
    both = states_with_later(callback, module, later, feed, {"seed": 5})
    assert both.facts == {"dataset": feed.snapshot_id, "of": "state", "seed": 5}
    assert both.after_training.sum() == 400
    assert np.array_equal(both.packed[:1500], found(callback).packed)
    assert callback.compressor is not None
    batch = later[1]
    hidden = module.scores(batch).hidden
    assert hidden is not None
    wanted = pack(callback.compressor.codes(hidden["state"]).numpy(), 4)
    assert np.array_equal(both.packed[1700:], wanted)
    early = rows_by_user(feed, np.arange(1490, 1510), module.history, 20)
    with pytest.raises(LeakError, match="10 of 20 examples of a batch, or later rows of their users, were trained on"):
        states_after_training(module, early, feed, callback.compressor)
    with pytest.raises(UsageError, match="the capture has kept no states"):
        states_with_later(StateCapture(4), module, [], feed, {})


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_fit_that_goes_on_keeps_the_rest(feed: ParquetSource, tmp_path: Path) -> None:
    whole, rest = StateCapture(4), StateCapture(4)
    for callback, checkpoint in ((whole, None), (rest, tmp_path / "step=4.ckpt")):
        module = teacher_module(feed)
        save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
        fit(module, data_module(feed, module), save, callback, enable_checkpointing=True, checkpoint=checkpoint)
    count = len(found(rest))
    assert 0 < count < 1500
    assert np.array_equal(found(rest).example_id, found(whole).example_id[-count:])


def test_rows_that_an_earlier_fit_has_seen_are_refused(feed: ParquetSource) -> None:
    module = teacher_module(feed)
    module.trained.add(TrainedExamples(feed.column("example_id")[:10]).ids())
    with pytest.raises(LeakError, match="examples of this batch were trained on in an earlier fit"):
        fit(module, data_module(feed, module), StateCapture(4))
    assert module.hands_out == ""


def test_rows_of_an_earlier_fit_of_the_same_callback_are_refused(feed: ParquetSource) -> None:
    module, callback = teacher_module(feed), StateCapture(4)
    fit(module, data_module(feed, module), callback)
    with pytest.raises(LeakError, match="examples of this batch were trained on in an earlier fit"):
        fit(module, data_module(feed, module), callback)


def test_shuffled_rows_are_refused(feed: ParquetSource) -> None:
    module = teacher_module(feed)
    with pytest.raises(LeakError, match="in a shuffled window the teacher could be trained on a later row"):
        fit(module, data_module(feed, module, order=ReadOrder(128, 48, "shuffle")), StateCapture(4))


def test_an_activation_that_the_teacher_has_not_is_told_with_those_it_has(feed: ParquetSource) -> None:
    module = teacher_module(feed)
    message = (
        r"HSTUTeacher gives no hidden activation 'mind' of 128 rows; it gives state \[128, 16\], token \[128, 16\]"
    )
    with pytest.raises(PluginError, match=message) as caught:
        fit(module, data_module(feed, module), StateCapture(4, of="mind"))
    assert "name one that it gives (states.of in a run)" in str(caught.value)


def test_a_student_and_several_processes_are_refused(feed: ParquetSource) -> None:
    student = make(installed(), "student", "mlp", BuildContext(feed.schema, ("click",)))
    module = StudentModule(student, {"click": Objective("click")})
    with pytest.raises(UsageError, match="StateCapture needs a TeacherModule, got StudentModule"):
        fit(module, data_module(feed, module), StateCapture(4))

    class Several:
        world_size = 2

    several: Any = Several()
    with pytest.raises(UsageError, match="hidden states are kept in one process"):
        StateCapture(4).on_train_start(several, teacher_module(feed))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 5}, "width must be even and >= 2, got 5"),
        ({"width": 4, "bits": 1}, r"bits must lie in \[2, 8\], got 1"),
        ({"width": 4, "lr": 0.0}, "lr must be > 0, warmup_steps >= 0 and of a name; got 0.0, 0 and 'state'"),
    ],
)
def test_settings_of_a_capture_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StateCapture(**values)
