"""Stochastic length: what is kept, how often, and that nothing but the past is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hstu_cases import make_batch, make_teacher, small_config
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill_core.batch import History
from recdistill_hstu.stochastic import stochastic_length


def history_of(lengths: list[int], rows: list[tuple[int, int]], seed: int = 0) -> History:
    found = make_batch(lengths, rows, seed).history
    assert found is not None
    return found


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=5), seed=st.integers(0, 99), data=st.data())
def test_rows_see_the_kept_ones_of_the_events_before_them(lengths: list[int], seed: int, data: st.DataObject) -> None:
    rows = [(at, data.draw(st.integers(0, length))) for at, length in enumerate(lengths) for _ in range(3)]
    history = history_of(lengths, rows)
    # each event names its place, so that what was kept can be read off
    place = torch.arange(sum(lengths))
    history = replace(history, events={**history.events, "item": place})
    torch.manual_seed(seed)
    found = stochastic_length(history, 40, 1.3)
    most = int(40**0.65)
    kept = set(found.events["item"].tolist())
    for row, (owner, end) in enumerate(rows):
        begin, last = int(history.offsets[owner]), int(history.offsets[owner]) + end
        mine = found.events["item"][int(found.offsets[owner]) :][: int(found.row_end[row])].tolist()
        assert mine == [event for event in range(begin, last) if event in kept]
    for length, left in zip(lengths, found.lengths.tolist(), strict=True):
        assert left == length or (length > most and left == most)
    for column in found.events.values():
        assert len(column) == int(found.offsets[-1])


def test_long_histories_stay_whole_as_often_as_published() -> None:
    limit, alpha, count = 100, 1.6, 4000
    for length in (50, 100):
        history = history_of([length] * count, [(0, length)])
        torch.manual_seed(0)
        whole = float((stochastic_length(history, limit, alpha).lengths == length).double().mean())
        expected = min(1.0, limit**alpha / length**2)
        assert whole == pytest.approx(expected, abs=4 * (expected * (1 - expected) / count) ** 0.5 + 1e-9)


def test_every_event_is_kept_equally_often() -> None:
    history = history_of([20] * 3000, [(0, 20)])
    history = replace(history, events={**history.events, "item": torch.arange(20).repeat(3000)})
    torch.manual_seed(0)
    counts = torch.bincount(stochastic_length(history, 20, 1.2).events["item"], minlength=20).double()
    assert float((counts / counts.mean() - 1).abs().max()) < 0.12


def test_only_training_is_thinned_and_a_seed_repeats_it() -> None:
    batch = make_batch([40, 5], [(0, 40), (0, 33), (1, 5)])
    plain, thinned = (make_teacher(small_config(stochastic_length=alpha)) for alpha in (0.0, 1.2))

    def training(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        thinned.train()
        return thinned.training_scores(batch).logits["click"].detach()

    assert torch.equal(plain.score(batch).logits["click"], thinned.score(batch).logits["click"])
    one, again, other = training(1), training(1), training(2)
    assert torch.equal(one, again)
    assert not torch.equal(one[:2], other[:2])
    assert torch.equal(one[2], other[2])  # a short history is never thinned


def test_later_events_do_not_reach_a_thinned_row() -> None:
    batch = make_batch([40], [(0, 25)])
    teacher = make_teacher(small_config(stochastic_length=1.2)).train()
    assert batch.history is not None
    events = {name: column.clone() for name, column in batch.history.events.items()}
    events["item"][25:] = (events["item"][25:] + 3) % 50
    events["action"][25:] = (events["action"][25:] + 1) % 8
    changed = replace(batch, history=replace(batch.history, events=events))
    logits = []
    for given_batch in (batch, changed):
        torch.manual_seed(3)
        logits.append(teacher.training_scores(given_batch).logits["click"].detach())
    assert torch.equal(*logits)
