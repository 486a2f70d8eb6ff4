"""A row's logit depends on its own features and on the events before it, and on nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hstu_cases import make_batch, make_teacher, small_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recdistill_core.batch import Batch, History
from recdistill_hstu.teacher import HSTUTeacher

#: attention, score budget, recent and oldest events that are attended to, truncated layers, and what they see
KINDS = [
    ("silu", 1 << 20, 0, 0, 0, 0),
    ("silu", 200, 0, 0, 0, 0),
    ("softmax", 1 << 20, 0, 0, 0, 0),
    ("silu", 200, 6, 2, 0, 0),
    ("silu", 200, 0, 0, 1, 7),
    ("silu", 1 << 20, 6, 2, 2, 12),
]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def teacher(request: pytest.FixtureRequest) -> HSTUTeacher:
    attention, budget, recent, oldest, truncated, length = request.param
    span = {"attend_recent": recent, "attend_oldest": oldest}
    cut = {"layers": max(2, truncated + 1), "truncate_layers": truncated, "truncate_length": length}
    return make_teacher(small_config(attention=attention, score_budget=budget, **span, **cut))


def logits(teacher: HSTUTeacher, batch: Batch) -> Tensor:
    """``[tasks, N]`` in training mode, where dropout is 0: what prequential capture stores."""
    teacher.train()
    return torch.stack(list(teacher.training_scores(batch).logits.values())).detach()


def same(found: Tensor, expected: Tensor) -> None:
    tolerance = 1e-10 if found.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@st.composite
def batches(draw: st.DrawFn, min_rows: int = 1) -> Batch:
    lengths = draw(st.lists(st.integers(0, 30), min_size=1, max_size=5))
    owners = draw(st.lists(st.integers(0, len(lengths) - 1), min_size=min_rows, max_size=12))
    rows = [(owner, draw(st.integers(0, lengths[owner]))) for owner in owners]
    return make_batch(lengths, rows, seed=draw(st.integers(0, 99)))


def history(batch: Batch) -> History:
    assert batch.history is not None
    return batch.history


def with_events(batch: Batch, **columns: Tensor) -> Batch:
    past = history(batch)
    return replace(batch, history=replace(past, events={**past.events, **columns}))


def with_history(batch: Batch, **changes: Any) -> Batch:
    return replace(batch, history=replace(history(batch), **changes))


quick = settings(max_examples=10, deadline=None)


@quick
@given(batch=batches())
def test_no_label_reaches_a_logit(teacher: HSTUTeacher, batch: Batch) -> None:
    flipped = replace(
        batch,
        labels={task: 1 - label for task, label in batch.labels.items()},
        observed={task: ~seen for task, seen in batch.observed.items()},
        position=torch.zeros(len(batch), dtype=torch.long),
        propensity=torch.full((len(batch),), 0.5),
        request_id=batch.request_id * 0,
    )
    assert torch.equal(logits(teacher, flipped), logits(teacher, batch))
    assert torch.equal(logits(teacher, replace(batch, labels={}, observed={})), logits(teacher, batch))


@quick
@given(batch=batches(), data=st.data())
def test_events_at_or_after_row_end_do_not_reach_its_logit(
    teacher: HSTUTeacher, batch: Batch, data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, len(batch) - 1))
    past = history(batch)
    owner = int(past.row_to_history[row])
    first, last = int(past.offsets[owner] + past.row_end[row]), int(past.offsets[owner + 1])
    changed = {name: column.clone() for name, column in past.events.items()}
    for name in ("item", "author", "tab", "action"):
        changed[name][first:last] += 1
    changed["time"][first:last] += 10**7
    before, after = logits(teacher, batch), logits(teacher, with_events(batch, **changed))
    assert torch.equal(after[:, row], before[:, row])


@quick
@given(batch=batches(), data=st.data())
def test_later_events_may_be_absent(teacher: HSTUTeacher, batch: Batch, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(batch) - 1))
    past = history(batch)
    begin = int(past.offsets[past.row_to_history[row]])
    end = begin + int(past.row_end[row])
    cut = with_history(
        batch.rows(torch.tensor([row])),
        events={name: column[begin:end] for name, column in past.events.items()},
        offsets=torch.tensor([0, end - begin]),
        row_to_history=torch.tensor([0]),
    )
    same(logits(teacher, cut)[:, 0], logits(teacher, batch)[:, row])


@quick
@given(batch=batches(min_rows=2), data=st.data())
def test_other_rows_do_not_reach_a_logit(teacher: HSTUTeacher, batch: Batch, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(batch) - 1))
    others = torch.arange(len(batch)) != row
    changed = replace(
        batch,
        item_id=torch.where(others, batch.item_id + 1, batch.item_id),
        event_time=torch.where(others, batch.event_time + 10**6, batch.event_time),
        categorical=torch.where(others[:, None], batch.categorical + 1, batch.categorical),
        numeric=torch.where(others[:, None], batch.numeric + 1, batch.numeric),
    )
    assert torch.equal(logits(teacher, changed)[:, row], logits(teacher, batch)[:, row])


@quick
@given(batch=batches(), data=st.data())
def test_rows_may_come_go_and_change_places(teacher: HSTUTeacher, batch: Batch, data: st.DataObject) -> None:
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(batch) - 1), min_size=1, max_size=15)))
    same(logits(teacher, batch.rows(index)), logits(teacher, batch)[:, index])


@quick
@given(batch=batches())
def test_jagged_batch_equals_rows_one_by_one(teacher: HSTUTeacher, batch: Batch) -> None:
    single = [logits(teacher, batch.rows(torch.tensor([row]))) for row in range(len(batch))]
    same(logits(teacher, batch), torch.cat(single, dim=1))


def test_what_a_row_may_see_does_reach_its_logit(teacher: HSTUTeacher) -> None:
    batch = make_batch([6, 4], [(0, 6), (1, 3)])
    before, events = logits(teacher, batch), history(batch).events
    newest_visible = torch.arange(10) == 5
    for name in ("item", "author", "tab", "action"):
        change = torch.where(newest_visible, (events[name] + 1) % 3, events[name])
        assert not torch.equal(logits(teacher, with_events(batch, **{name: change}))[:, 0], before[:, 0]), name
    later = replace(batch, event_time=batch.event_time + 10**9)
    assert not torch.equal(logits(teacher, later), before)
    earlier = with_history(batch, row_end=torch.tensor([5, 3]))
    assert not torch.equal(logits(teacher, earlier)[:, 0], before[:, 0])
    same(logits(teacher, earlier)[:, 1], before[:, 1])
