"""Encoded histories: candidates against a cache, and a cache that grows, equal encoding everything again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hstu_cases import make_batch, make_teacher, small_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError, RecdistillError, UsageError
from recdistill_core.testing.samples import windowed
from recdistill_hstu.teacher import HSTUTeacher

CONFIGS: list[dict[str, Any]] = [
    {},
    {"attention": "softmax", "layers": 3},
    {"attend_recent": 5, "attend_oldest": 2},
    {"max_length": 12, "history_stride": 4},
    {"max_length": 12, "history_stride": 3, "keep_oldest": 4, "layers": 1},
    {"layers": 3, "truncate_layers": 2, "truncate_length": 6},
    {"max_length": 14, "history_stride": 4, "keep_oldest": 3, "layers": 3, "truncate_layers": 1, "truncate_length": 5},
    {"backend": "reference", "layers": 3, "truncate_layers": 2, "truncate_length": 4, "attend_recent": 3},
]


def slices(events: Mapping[str, Tensor], offsets: Tensor, begin: list[int], end: list[int]) -> tuple[Any, Tensor]:
    """Events at places ``begin`` to ``end`` of every history."""
    index = [torch.arange(int(first) + a, int(first) + b) for first, a, b in zip(offsets[:-1], begin, end, strict=True)]
    counts = [b - a for a, b in zip(begin, end, strict=True)]
    return {name: column[torch.cat(index)] for name, column in events.items()}, torch.tensor([0, *counts]).cumsum(0)


def at_the_end(batch: Batch) -> Batch:
    """The same rows after all events of their histories."""
    history = batch.history
    assert history is not None
    ends = history.lengths[history.row_to_history]
    newest = (history.offsets[history.row_to_history] + ends - 1).clamp(min=0)
    time = history.events["time"]
    after = time[newest] + 1000 if len(time) else batch.event_time
    return replace(
        batch,
        event_time=torch.where(ends > 0, after, batch.event_time),
        history=replace(history, row_end=ends),
    )


def expected(teacher: HSTUTeacher, batch: Batch) -> Tensor:
    return torch.stack(list(teacher.score(windowed(batch, teacher.history)).logits.values()))


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.integers(0, 36), min_size=1, max_size=4), data=st.data())
def test_a_cache_that_grew_scores_as_encoding_again(
    changes: dict[str, Any], lengths: list[int], data: st.DataObject
) -> None:
    teacher = make_teacher(small_config(**changes)).train()
    owners = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=9))
    batch = at_the_end(make_batch(lengths, [(owner, 0) for owner in owners], seed=data.draw(st.integers(0, 9))))
    history = batch.history
    assert history is not None
    begin = [0] * len(lengths)
    encoded = None
    for number in range(data.draw(st.integers(1, 4), label="parts")):
        last = number == 3 or data.draw(st.booleans())
        end = lengths if last else [data.draw(st.integers(a, n)) for a, n in zip(begin, lengths, strict=True)]
        part = slices(history.events, history.offsets, begin, end)
        encoded = teacher.encode(*part) if encoded is None else teacher.extend(encoded, *part)
        begin = end
        if last:
            break
    assert encoded is not None
    rest = slices(history.events, history.offsets, begin, lengths)
    encoded = teacher.extend(encoded, *rest)
    found = teacher.score_candidates(encoded, batch, history.row_to_history, micro_batch=4)
    assert teacher.training
    torch.testing.assert_close(torch.stack(list(found.logits.values())), expected(teacher, batch), rtol=1e-9, atol=1e-9)
    assert encoded.offsets.diff().tolist() == lengths


def test_float32_agrees_to_five_digits_at_length() -> None:
    teacher = make_teacher(small_config(max_length=600, history_stride=100), double=False)
    batch = at_the_end(make_batch([500, 40], [(0, 0)] * 300 + [(1, 0)] * 50))
    history = batch.history
    assert history is not None
    begin = slices(history.events, history.offsets, [0, 0], [420, 0])
    encoded = teacher.extend(teacher.encode(*begin), *slices(history.events, history.offsets, [420, 0], [500, 40]))
    found = teacher.score_candidates(encoded, batch, history.row_to_history)
    torch.testing.assert_close(torch.stack(list(found.logits.values())), expected(teacher, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_autocast_agrees_to_bfloat16_whichever_part_it_is_around(changes: dict[str, Any]) -> None:
    teacher = make_teacher(small_config(**changes), double=False)
    batch = at_the_end(make_batch([20, 0, 9], [(0, 0), (0, 0), (1, 0), (2, 0)]))
    history = batch.history
    assert history is not None
    older = slices(history.events, history.offsets, [0, 0, 0], [13, 0, 4])
    newer = slices(history.events, history.offsets, [13, 0, 4], [20, 0, 9])
    exact = expected(teacher, batch)
    for kinds in ((True, True, True), (False, True, True), (True, False, False), (False, False, True)):
        encoding, extending, scoring = (torch.autocast("cpu", torch.bfloat16, enabled=kind) for kind in kinds)
        with encoding:
            encoded = teacher.encode(*older)
        with extending:
            encoded = teacher.extend(encoded, *newer)
        with scoring:
            found = teacher.score_candidates(encoded, batch, history.row_to_history)
        logits = torch.stack(list(found.logits.values())).float()
        assert 0 < float((logits - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_candidates_do_not_see_each_other() -> None:
    teacher = make_teacher(small_config())
    batch = at_the_end(make_batch([20], [(0, 0)] * 6))
    history = batch.history
    assert history is not None
    encoded = teacher.encode(history.events, history.offsets)
    owner = history.row_to_history
    together = teacher.score_candidates(encoded, batch, owner).logits["click"]
    for row in range(6):
        alone = teacher.score_candidates(encoded, batch.rows(torch.tensor([row])), owner[:1]).logits["click"]
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-12, atol=1e-12)
    nothing = teacher.score_candidates(encoded, batch.rows(owner[:0]), owner[:0])
    assert nothing.logits["click"].shape == (0,)


def test_a_growing_history_is_not_encoded_again() -> None:
    teacher = make_teacher(small_config(layers=3))
    batch = make_batch([40, 10], [(0, 0)])
    history = batch.history
    assert history is not None
    encoded = teacher.encode(*slices(history.events, history.offsets, [0, 0], [39, 10]))
    seen: list[int] = []
    for layer in teacher.layers:
        layer.project.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    teacher.extend(encoded, *slices(history.events, history.offsets, [39, 10], [40, 10]))
    assert seen == [1, 1, 1]


def refusals() -> dict[str, tuple[Any, type[RecdistillError], str]]:
    def owner(teacher: HSTUTeacher, encoded: Any, batch: Batch) -> None:
        teacher.score_candidates(encoded, batch, torch.tensor([0, 2]))

    def count(teacher: HSTUTeacher, encoded: Any, batch: Batch) -> None:
        teacher.score_candidates(encoded, batch, torch.tensor([0]))

    def early(teacher: HSTUTeacher, encoded: Any, batch: Batch) -> None:
        time = encoded.last_time()[torch.tensor([0, 0])]
        teacher.score_candidates(encoded, replace(batch, event_time=time), torch.tensor([0, 0]))

    def micro(teacher: HSTUTeacher, encoded: Any, batch: Batch) -> None:
        teacher.score_candidates(encoded, batch, torch.tensor([0, 0]), micro_batch=0)

    def weights(teacher: HSTUTeacher, encoded: Any, batch: Batch) -> None:
        with torch.no_grad():
            teacher.layers[0].output.weight.add_(1)
        teacher.score_candidates(encoded, batch, torch.tensor([0, 0]))

    def step(teacher: HSTUTeacher, encoded: Any, batch: Batch) -> None:
        optimizer = torch.optim.AdamW(teacher.parameters(), lr=1e-3, fused=True)  # as in training; counts no version up
        teacher.training_scores(batch).logits["click"].sum().backward()
        optimizer.step()
        teacher.score_candidates(encoded, batch, torch.tensor([0, 1]))

    def table(teacher: HSTUTeacher, encoded: Any, batch: Batch) -> None:
        for weight in teacher.parameters():
            weight.requires_grad_(weight is teacher.tokens.table.weight)
        optimizer = torch.optim.AdamW(teacher.parameters(), lr=1e-3, weight_decay=0, fused=True)
        teacher.tokens.table.weight.grad = torch.zeros_like(teacher.tokens.table.weight)
        teacher.tokens.table.weight.grad[-1] = 1.0  # moves the last row alone
        optimizer.step()
        teacher.score_candidates(encoded, batch, torch.tensor([0, 1]))

    def average(teacher: HSTUTeacher, encoded: Any, batch: Batch) -> None:
        teacher.layers[0].output.weight.data[1:].mul_(0.5)  # the first entries stay as they are
        teacher.score_candidates(encoded, batch, torch.tensor([0, 1]))

    def offsets(teacher: HSTUTeacher, encoded: Any, batch: Batch) -> None:
        teacher.extend(encoded, {name: column[:0] for name, column in encoded.events.items()}, torch.zeros(2).long())

    def older(teacher: HSTUTeacher, encoded: Any, batch: Batch) -> None:
        first = {name: column[:1] for name, column in encoded.events.items()}
        teacher.extend(encoded, first, torch.tensor([0, 1, 1]))

    def unsorted(teacher: HSTUTeacher, encoded: Any, batch: Batch) -> None:
        teacher.encode({name: column[:5].flip(0) for name, column in encoded.events.items()}, torch.tensor([0, 5]))

    def fields(teacher: HSTUTeacher, encoded: Any, batch: Batch) -> None:
        teacher.extend(encoded, {"item": encoded.events["item"][:0]}, torch.tensor([0, 0, 0]))

    return {
        "owner": (owner, DataError, r"owner must name one of 2 histories for each of 2 rows"),
        "count": (count, DataError, r"owner must name one of 2 histories for each of 2 rows"),
        "early": (early, DataError, r"candidate 0 has time (\d+), and the event before it \1"),
        "micro": (micro, UsageError, r"micro_batch must be at least 1, got 0"),
        "weights": (weights, UsageError, r"the teacher's weights have changed since the histories were encoded"),
        "step": (step, UsageError, r"the teacher's weights have changed since the histories were encoded"),
        "table": (table, UsageError, r"the teacher's weights have changed since the histories were encoded"),
        "average": (average, UsageError, r"the teacher's weights have changed since the histories were encoded"),
        "offsets": (offsets, DataError, r"there are new events of 1 histories, and 2 are encoded"),
        "older": (older, DataError, r"event 0 has time \d+, and the event before it \d+\n  where: history 0"),
        "unsorted": (unsorted, DataError, r"event 1 has time \d+, and the event before it \d+\n  where: history 0"),
        "fields": (fields, DataError, r"the events lack author, tab, action, time"),
    }


def changed(**columns: Any) -> Any:
    """Seven events of two histories, with columns changed; None leaves one out."""
    batch = make_batch([5, 2], [(0, 0), (1, 0)])
    assert batch.history is not None
    return {name: column for name, column in {**batch.history.events, **columns}.items() if column is not None}


@pytest.mark.parametrize(
    ("columns", "offsets", "message"),
    [
        ({"time": None}, [0, 5, 7], "the events lack time"),
        ({"action": None}, [0, 5, 7], "the events lack action"),
        ({"item": np.arange(7)}, [0, 5, 7], "item is no int64 tensor of one dimension"),
        ({"item": torch.arange(7.0)}, [0, 5, 7], "item is no int64 tensor of one dimension"),
        ({"item": torch.arange(7).int()}, [0, 5, 7], "item is no int64 tensor of one dimension"),
        ({"item": torch.arange(6)}, [0, 5, 7], "item has 6 entries, time 7"),
        ({}, [0, 5, 9], "offsets [0, 5, 9] do not part 7 events among 2 histories"),
        ({}, [1, 5, 7], "offsets [1, 5, 7] do not part 7 events among 2 histories"),
        ({}, [0, 8, 7], "offsets [0, 8, 7] do not part 7 events among 2 histories"),
        ({"action": torch.full((7,), 1000)}, [0, 5, 7], "event 0 has the action code 1000, outside [0, 8)"),
        ({"action": torch.tensor([0, 0, -1, 0, 0, 0, 0])}, [0, 5, 7], "event 2 has the action code -1"),
    ],
)
def test_events_that_are_none_are_refused(columns: dict[str, Any], offsets: list[int], message: str) -> None:
    with pytest.raises(DataError) as caught:
        make_teacher(small_config()).encode(changed(**columns), torch.tensor(offsets))
    assert str(caught.value).startswith(message)
    assert "HSTUTeacher.encode" in str(caught.value)


def test_offsets_and_owners_are_whole_numbers() -> None:
    teacher = make_teacher(small_config())
    mistakes: list[Any] = [[0, 5, 7], torch.tensor([0, 5, 7]).int()]
    for offsets in mistakes:
        with pytest.raises(DataError, match="offsets is no int64 tensor of one dimension"):
            teacher.encode(changed(), offsets)
    batch = at_the_end(make_batch([5, 2], [(0, 0), (1, 0)]))
    encoded = teacher.encode(changed(), torch.tensor([0, 5, 7]))
    for owner in ([0, 1], torch.tensor([0.0, 1.0])):
        with pytest.raises(DataError, match="owner must name one of 2 histories for each of 2 rows"):
            teacher.score_candidates(encoded, batch, owner)  # type: ignore[arg-type]  # the mistake


@pytest.mark.parametrize("case", refusals())
def test_what_is_refused(case: str) -> None:
    act, kind, message = refusals()[case]
    teacher = make_teacher(small_config())
    batch = at_the_end(make_batch([9, 4], [(0, 0), (1, 0)]))
    assert batch.history is not None
    encoded = teacher.encode(batch.history.events, batch.history.offsets)
    with pytest.raises(kind) as caught:
        act(teacher, encoded, batch)
    assert re.match(message, str(caught.value)), str(caught.value)
    assert "to do:" in str(caught.value)


def test_a_step_of_another_model_leaves_encoded_histories_valid() -> None:
    teacher, other = make_teacher(small_config()), torch.nn.Linear(2, 1)
    batch = at_the_end(make_batch([9, 4], [(0, 0), (1, 0)]))
    assert batch.history is not None
    encoded = teacher.encode(batch.history.events, batch.history.offsets)
    before = teacher.score_candidates(encoded, batch, torch.tensor([0, 1])).logits["click"]
    other(torch.ones(1, 2)).sum().backward()
    torch.optim.AdamW(other.parameters(), fused=True).step()
    assert torch.equal(teacher.score_candidates(encoded, batch, torch.tensor([0, 1])).logits["click"], before)
