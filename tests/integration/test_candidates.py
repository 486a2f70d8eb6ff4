"""Items that were not shown: which ones stand beside a row, and what the teacher says of them and when."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from pipeline_cases import FLIPPED, Before, data_module, fit, teacher_module

from recdistill_core.errors import DataError, UsageError
from recdistill_core.interfaces import HistoryWindow
from recdistill_lightning import FeatureView, LogitCapture
from recdistill_lightning.candidates import CandidateDraw, CandidateItems, CandidateLabels
from recdistill_parquet.dataset import ParquetSource
from recdistill_parquet.labels import ParquetLogitStore

ROWS = np.arange(3000)


@pytest.fixture(scope="module", params=["popularity", "uniform"])
def candidates(request: pytest.FixtureRequest, feed: ParquetSource) -> CandidateItems:
    return CandidateItems(feed, CandidateDraw(4, request.param, seed=1))


def test_a_donor_is_an_earlier_row_with_an_item_that_the_user_has_not_been_shown(
    candidates: CandidateItems, feed: ParquetSource
) -> None:
    donor, _ = candidates.drawn(ROWS)
    user, item, time = (feed.column(name) for name in ("user_id", "item_id", "event_time"))
    for row in range(0, 3000, 7):
        chosen = donor[row][donor[row] >= 0]
        assert (chosen < row).all()
        assert len(set(item[chosen])) == len(chosen)
        shown = set(item[(user == user[row]) & (time <= time[row])])
        assert not shown & set(item[chosen])
    assert (donor[0] == -1).all()  # nothing was shown before
    assert (donor[300:] >= 0).mean() > 0.8  # users have seen half of the few items


def test_what_stands_beside_a_row_depends_on_the_row_alone(candidates: CandidateItems, feed: ParquetSource) -> None:
    donor, ids = candidates.drawn(ROWS)
    some = np.array([2500, 3, 777, 1400])
    assert np.array_equal(candidates.drawn(some)[0], donor[some])
    assert np.array_equal(candidates.drawn(some)[1], ids[some])
    assert len(np.unique(ids)) == ids.size
    assert ids.min() >= 0
    assert not np.isin(ids, feed.column("example_id")).any()
    other = CandidateItems(feed, CandidateDraw(4, candidates.draw.by, seed=2))
    assert not np.isin(other.drawn(ROWS)[1], ids).any()
    assert (other.drawn(ROWS)[0] != donor).mean() > 0.5
    # more candidates are these and others
    assert np.array_equal(CandidateItems(feed, CandidateDraw(6, candidates.draw.by, seed=1)).drawn(ROWS)[1][:, :4], ids)


class Begun(FeatureView):
    """The first rows of a log, as it stood then."""

    def __init__(self, source: ParquetSource, num_rows: int) -> None:
        super().__init__(source, [])
        self.num_rows = num_rows

    def column(self, name: str) -> Any:
        return super().column(name)[: self.num_rows]


@pytest.mark.parametrize("length", [2, 400, 1777])
def test_nothing_that_comes_later_decides_what_stands_beside_a_row(
    candidates: CandidateItems, feed: ParquetSource, length: int
) -> None:
    time = feed.column("event_time")
    length = int(np.searchsorted(time, time[length]))  # whole requests: what else a request shows is known with it
    then = CandidateItems(Begun(feed, length), candidates.draw)
    for now, before in zip(candidates.drawn(ROWS[:length]), then.drawn(ROWS[:length]), strict=True):
        assert np.array_equal(now, before)


def test_a_candidate_is_its_row_with_the_donors_item(candidates: CandidateItems, feed: ParquetSource) -> None:
    rows, window = np.arange(900, 940), HistoryWindow(8, 4)
    found = candidates.batch(rows, window)
    assert found is not None
    made, places = found
    donor, ids = candidates.drawn(rows)
    own, giver = feed.batch(rows[places // 4], window), feed.batch(donor.ravel()[places], None)
    assert np.array_equal(made.example_id.numpy(), ids.ravel()[places])
    assert torch.equal(made.item_id, giver.item_id)
    for at, feature in feed.schema.feature_index():
        wanted = giver if feature.side == "item" else own
        assert torch.equal(made.categorical[:, at], wanted.categorical[:, at]), feature.name
    for at, name in enumerate(feed.schema.numeric):
        wanted = giver if name == "length" else own
        assert torch.equal(made.numeric[:, at], wanted.numeric[:, at]), name
    assert torch.equal(made.event_time, own.event_time)
    assert torch.equal(made.user_id, own.user_id)
    assert made.history is not None
    assert own.history is not None
    for name in own.history.events:
        mine, _ = made.history.last(8)
        theirs, _ = own.history.last(8)
        assert torch.equal(mine[name], theirs[name])
    assert not any(seen.any() for seen in made.observed.values())
    assert not any(label.any() for label in made.labels.values())


def test_uniform_candidates_reach_rarer_items(feed: ParquetSource) -> None:
    item = feed.column("item_id")
    count = np.bincount(item)
    seen = {}
    for by in ("popularity", "uniform"):
        donor, _ = CandidateItems(feed, CandidateDraw(4, by)).drawn(ROWS)
        seen[by] = count[item[donor[donor >= 0]]].mean()
    assert seen["uniform"] < 0.8 * seen["popularity"]


def test_a_dataset_that_does_not_tell_the_items_numbers_is_refused(feed: ParquetSource) -> None:
    old = copy.copy(feed)
    old.schema = replace(feed.schema, numeric_sides={})
    with pytest.raises(DataError, match="does not say whose property the numeric feature 'length' is") as caught:
        CandidateItems(old)
    assert "import the log again" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"per_row": 0}, "per_row must be >= 1, got 0"),
        ({"by": "luck"}, "by must be one of popularity, uniform, got 'luck'"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"hard": 0}, "hard must be >= 1, got 0"),
    ],
)
def test_draws_that_mean_nothing(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CandidateDraw(**values)


# ---------------------------------------------------------------------------------------------------------- capture


def captured(source: ParquetSource, path: Path, draw: CandidateDraw | None, *others: L.Callback) -> LogitCapture:
    module = teacher_module(source)
    beside = None if draw is None else CandidateItems(source, draw)
    callback = LogitCapture(ParquetLogitStore(path))
    fit(module, data_module(source, module, candidates=beside), callback, *others)
    return callback


def test_candidates_get_the_logit_of_the_teacher_before_the_update_and_move_no_other(
    feed: ParquetSource, tmp_path: Path
) -> None:
    before = Before()
    callback = captured(feed, tmp_path / "with", CandidateDraw(2), before)
    plain = captured(feed, tmp_path / "without", None)
    assert callback.committed is not None
    assert callback.candidates.committed is not None
    assert plain.candidates.committed is None
    assert plain.version == callback.version
    stores = [ParquetLogitStore(tmp_path / name) for name in ("with", "without")]
    ids = feed.column("example_id")[:1500]
    labels = [store.read(callback.version, ids).logits["click"] for store in stores]
    assert torch.equal(*labels)  # the teacher trains as it would without
    told = callback.candidates.committed
    assert told.facts["candidates_of"] == callback.version
    assert told.facts["candidates"] == {"per_row": 2, "by": "popularity", "seed": 0, "hard": 1}
    assert told.count == sum(0 if batch.candidates is None else len(batch.candidates) for batch, _ in before.steps)
    assert told.count > 2500
    for batch, teacher in before.steps[1::4]:
        signal = stores[0].read(told.version, batch.candidates.example_id.numpy())
        assert signal.valid["click"].all()
        wanted = teacher.score(batch.candidates.without_outcomes()).logits["click"]
        torch.testing.assert_close(signal.logits["click"], wanted, rtol=0, atol=1e-6)


def test_of_hard_candidates_those_keep_a_label_that_the_teacher_scores_highest(
    feed: ParquetSource, tmp_path: Path
) -> None:
    draw, before = CandidateDraw(2, hard=3), Before()
    callback = captured(feed, tmp_path, draw, before)
    told = callback.candidates.committed
    assert told is not None
    store = ParquetLogitStore(tmp_path)
    batch, teacher = before.steps[5]
    beside = batch.candidates
    logit = teacher.score(beside.without_outcomes()).logits["click"]
    kept = store.read(told.version, beside.example_id.numpy()).valid["click"]
    for row in beside.beside.unique().tolist():
        own = beside.beside == row
        assert int(kept[own].sum()) == min(2, int(own.sum()))
        if not kept[own].all():
            assert logit[own & kept].min() >= logit[own & ~kept].max() - 1e-6
    rows = np.flatnonzero(np.isin(feed.column("example_id"), batch.example_id.numpy()))
    labels = CandidateLabels(CandidateItems(feed, draw), store, told.version, (0, 1500))
    learnt = labels.batch(rows, HistoryWindow(8, 4))
    assert learnt is not None
    assert set(learnt.example_id.tolist()) == set(beside.example_id[kept].tolist())
    assert learnt.teacher is not None
    assert learnt.teacher.valid["click"].all()
    assert torch.equal(learnt.event_time, torch.from_numpy(feed.column("event_time")[rows])[learnt.beside])


@pytest.mark.parametrize("hard", [1, 2])
def test_a_label_reaches_no_candidate_of_its_own_row_nor_of_an_earlier_step(
    hard: int, feed: ParquetSource, twin: ParquetSource, tmp_path: Path
) -> None:
    draw = CandidateDraw(3, hard=hard)
    donor, ids = CandidateItems(feed, draw).drawn(ROWS[:1500])
    found, steps = [], []
    for name, source in (("one", feed), ("two", twin)):
        before = Before()
        callback = captured(source, tmp_path / name, draw, before)
        assert callback.candidates.committed is not None
        version = callback.candidates.committed.version
        found.append(ParquetLogitStore(tmp_path / name).read(version, ids.ravel()).logits["click"].reshape(ids.shape))
        steps.append({int(row): at for at, (batch, _) in enumerate(before.steps) for row in batch.example_id})
    assert steps[0] == steps[1]
    step = np.array([steps[0][row] for row in range(1500)])
    same = (found[0] == found[1]).numpy()
    there = donor >= 0
    assert same[FLIPPED].all()
    assert same[step < step[FLIPPED]].all()
    later = (feed.column("user_id")[:1500] == feed.column("user_id")[FLIPPED]) & (ROWS[:1500] > FLIPPED)
    assert same[(step == step[FLIPPED]) & ~later].all()
    moved = there & (found[0] != 0).numpy()
    assert same[step > step[FLIPPED]][moved[step > step[FLIPPED]]].mean() < 0.05


def test_a_capture_that_breaks_leaves_no_candidate(feed: ParquetSource, tmp_path: Path) -> None:
    class Breaks(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *given: Any) -> None:
            if trainer.global_step == 5:
                raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        captured(feed, tmp_path, CandidateDraw(2), Breaks())
    assert ParquetLogitStore(tmp_path).versions() == ()


def test_candidates_need_one_process(feed: ParquetSource, monkeypatch: pytest.MonkeyPatch) -> None:
    module = teacher_module(feed)
    data = data_module(feed, module, candidates=CandidateItems(feed))
    monkeypatch.setattr(type(data), "_part", lambda self: (0, 2))
    with pytest.raises(UsageError, match="candidates beside the rows are for training in one process"):
        data.train_dataloader()


def test_candidates_beside_rows_that_keep_no_label_have_none(feed: ParquetSource, tmp_path: Path) -> None:
    callback = captured(feed, tmp_path, CandidateDraw(2))
    assert callback.candidates.committed is not None
    drawn, store, keep = CandidateItems(feed, CandidateDraw(2)), ParquetLogitStore(tmp_path), np.arange(3000) < 900
    labels = [CandidateLabels(drawn, store, callback.candidates.committed.version, (0, 1500), k) for k in (None, keep)]
    assert labels[1].count((0, 1500)) == labels[1].count((0, 900)) == labels[0].count((0, 900))
    assert labels[1].count((900, 1500)) == 0 < labels[0].count((900, 1500))


def test_labels_of_other_candidates_are_none(feed: ParquetSource, tmp_path: Path) -> None:
    callback = captured(feed, tmp_path, CandidateDraw(2))
    assert callback.candidates.committed is not None
    version = callback.candidates.committed.version
    others = CandidateItems(feed, CandidateDraw(2, seed=9))
    with pytest.raises(DataError, match="has no label of any candidate of these rows") as caught:
        CandidateLabels(others, ParquetLogitStore(tmp_path), version, (0, 1500))
    assert "same dataset, per_row, by, seed and hard" in str(caught.value)
