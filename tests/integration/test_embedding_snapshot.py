"""Snapshots of a teacher's embeddings: when they are taken, of which ids, and from whom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pipeline_cases import FLIPPED, Before, data_module, fit, teacher_module, teacher_tables

from recdistill_core.component import BuildContext
from recdistill_core.config import make
from recdistill_core.errors import DataError, LeakError, UsageError
from recdistill_core.objective import Objective
from recdistill_core.registry import installed
from recdistill_lightning import (
    DistillationDataModule,
    EmbeddingSnapshot,
    ReadOrder,
    StudentModule,
)
from recdistill_parquet.dataset import ParquetSource


def taken(
    source: ParquetSource,
    row: int | None,
    *others: L.Callback,
    kinds: Sequence[str] = ("item", "creator"),
    **settings: Any,
) -> EmbeddingSnapshot:
    """The snapshot before the first batch with a row at or after ``row``; None: at the end."""
    module = teacher_module(source)
    before = None if row is None else int(source.column("event_time")[row])
    snapshot = EmbeddingSnapshot(source, kinds, before=before)
    fit(module, data_module(source, module, **settings), snapshot, *others)
    return snapshot


# --------------------------------------------------------------------------------------------------------- the snapshot


def test_it_is_taken_before_the_update_on_the_first_of_these_rows(feed: ParquetSource) -> None:
    before = Before()
    snapshot = taken(feed, 700, before)
    time = int(feed.column("event_time")[700])
    first = next(at for at, (batch, _) in enumerate(before.steps) if (batch.event_time >= time).any())
    assert snapshot.updates == first > 2
    assert snapshot.taken is not None
    teacher = before.steps[first][1]
    for kind, ids in (("item", 81), ("creator", 13)):
        wanted = teacher.id_embedding(kind, torch.arange(ids)).detach()
        assert torch.equal(snapshot.taken.tables[kind], wanted)
        assert not torch.equal(before.steps[first + 1][1].id_embedding(kind, torch.arange(ids)).detach(), wanted)


def test_a_label_of_these_rows_moves_no_embedding(feed: ParquetSource, twin: ParquetSource) -> None:
    """The feed and its twin differ in one label, of a row at or after the students' first; the copies do not."""
    for row in (FLIPPED, FLIPPED - 90):
        one, two = (taken(source, row).taken for source in (feed, twin))
        assert one is not None
        assert two is not None
        for kind in one.tables:
            assert torch.equal(one.tables[kind], two.tables[kind]), (row, kind)
            assert torch.equal(one.seen[kind], two.seen[kind]), (row, kind)
    one, two = (taken(source, None).taken for source in (feed, twin))
    assert one is not None
    assert two is not None
    assert not torch.equal(one.tables["item"], two.tables["item"])  # those of the end hold it


def test_it_tells_which_ids_the_teacher_was_trained_on(feed: ParquetSource) -> None:
    before = Before()
    snapshot = taken(feed, 200, before, order=ReadOrder(16, 1, "user"))
    assert snapshot.taken is not None
    done = [batch for batch, _ in before.steps[: snapshot.updates]]
    items = {int(item) for batch in done for item in batch.item_id}
    items |= {int(item) for batch in done for item in batch.history.events["item"]}
    assert set(snapshot.taken.seen["item"].nonzero()[:, 0].tolist()) == items
    column = [feature.name for feature in feed.schema.categorical].index("creator")
    creators = {int(value) for batch in done for value in batch.categorical[:, column]}
    assert set(snapshot.taken.seen["creator"].nonzero()[:, 0].tolist()) == creators
    for kind, table in teacher_tables(feed).items():  # what was not seen is as it was drawn
        unseen = ~snapshot.taken.seen[kind]
        assert torch.equal(snapshot.taken.tables[kind][unseen], table[unseen])


def test_without_such_a_row_it_is_that_of_the_end(feed: ParquetSource) -> None:
    end, never = taken(feed, None), taken(feed, 2999)
    assert end.taken is not None
    assert never.taken is not None
    assert end.updates == never.updates
    assert torch.equal(end.taken.tables["item"], never.taken.tables["item"])


def test_a_snapshot_before_any_training_is_refused(feed: ParquetSource) -> None:
    with pytest.raises(
        UsageError, match="the teacher's first batch holds rows of the students: its embeddings are not"
    ):
        taken(feed, 0)


def test_a_teacher_that_knows_these_rows_is_refused(feed: ParquetSource) -> None:
    module = teacher_module(feed)
    fit(module, data_module(feed, module))
    snapshot = EmbeddingSnapshot(feed, before=int(feed.column("event_time")[1400]))
    with pytest.raises(LeakError, match="the teacher has been trained on rows of the students in an earlier fit"):
        fit(module, data_module(feed, module), snapshot)
    later = EmbeddingSnapshot(feed, before=int(feed.column("event_time")[2000]))
    fit(module, data_module(feed, module), later)
    assert later.taken is not None
    third = EmbeddingSnapshot(feed, before=int(feed.column("event_time")[1500]))
    order = ReadOrder(batch_size=128, window_hours=48, within="user")
    fit(module, DistillationDataModule(feed, order, train=(1500, 2000), history=module.history), third)
    assert third.taken is not None
    assert third.updates == 0  # its first batch holds such rows, and the fits before it did not
    known = set(feed.column("item_id")[:1500].tolist())
    assert known <= set(third.taken.seen["item"].nonzero()[:, 0].tolist())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_fit_that_goes_on_from_a_checkpoint_keeps_the_same_embeddings(feed: ParquetSource, tmp_path: Path) -> None:
    time = int(feed.column("event_time")[700])
    snapshots = []
    for stop in (None, 3, 10):
        module, saved = teacher_module(feed), ModelCheckpoint(tmp_path / str(stop), every_n_train_steps=1)
        snapshot = EmbeddingSnapshot(feed, ("item", "creator"), before=time)
        if stop is not None:
            fit(module, data_module(feed, module), snapshot, saved, max_steps=stop, enable_checkpointing=True)
            module, snapshot = teacher_module(feed), EmbeddingSnapshot(feed, ("item", "creator"), before=time)
        fit(module, data_module(feed, module), snapshot, checkpoint=None if stop is None else saved.best_model_path)
        snapshots.append(snapshot)
    for other in snapshots[1:]:
        assert other.updates == snapshots[0].updates
        for kind in ("item", "creator"):
            assert torch.equal(other.taken.tables[kind], snapshots[0].taken.tables[kind])
            assert torch.equal(other.taken.seen[kind], snapshots[0].taken.seen[kind])


def test_it_is_for_teachers_in_one_process(feed: ParquetSource, monkeypatch: pytest.MonkeyPatch) -> None:
    context = BuildContext(feed.schema, ("click",))
    module = StudentModule(make(installed(), "student", "mlp", context), {"click": Objective("click")})
    with pytest.raises(UsageError, match="EmbeddingSnapshot is for a TeacherModule that is trained in one process"):
        fit(module, data_module(feed, module), EmbeddingSnapshot(feed, before=None))


def test_a_teacher_without_embeddings_of_a_kind_is_refused(feed: ParquetSource) -> None:
    module = teacher_module(feed, leave_out=["user_id"])
    with pytest.raises(DataError, match="HSTUTeacher has no embedding of kind 'user_id'"):
        fit(module, data_module(feed, module, rows=300), EmbeddingSnapshot(feed, ["user_id"], before=None))
