"""Stochastic length: what is kept, how often, and that nothing but the past is."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hstu_cases import make_batch, make_teacher, small_config
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recdistill_core.batch import History
from recdistill_hstu.stochastic import LEAST, expected_area, known, level_of, stochastic_length, systematic, thin


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
    for at, (length, left) in enumerate(zip(lengths, found.lengths.tolist(), strict=True)):
        oldest = min([end for owner, end in rows if owner == at])
        begin = int(history.offsets[at])
        before = len(kept & set(range(begin, begin + oldest)))
        assert left == length or (oldest > most and before == most)
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


@pytest.mark.parametrize("balance", [False, True])
def test_how_much_a_row_sees_does_not_tell_how_many_events_and_rows_come_later(balance: bool) -> None:
    """Kept events before the oldest row, over many draws, with and without 40 later events and rows that see them."""
    alone, followed = history_of([60], [(0, 60)]), history_of([100], [(0, 60), (0, 80), (0, 100)])
    counts = []
    for history in (alone, followed):
        assert known(history).tolist() == [60]
        torch.manual_seed(0)
        found = [thin(history, 900.0, balance=balance).row_end for _ in range(2000)]
        counts.append(torch.stack(found))
    for found in counts:
        assert set(found[:, 0].tolist()) == {30, 60}
    shares = [(found[:, 0] == 60).double().mean() for found in counts]
    assert [float(share) for share in shares] == pytest.approx([0.25, 0.25], abs=4 * (0.25 * 0.75 / 2000) ** 0.5)
    thinned = counts[1][counts[1][:, 0] == 30].double()
    later = (thinned.diff(dim=1)).mean(0)  # of 20 events after that row half are kept
    assert later.tolist() == pytest.approx([10.0, 10.0], abs=4 * (20 * 0.25 / len(thinned)) ** 0.5)
    assert counts[1][counts[1][:, 0] == 60].unique(dim=0).tolist() == [[60, 80, 100]]


def test_a_row_that_sees_few_events_sees_them_all_whatever_comes_later() -> None:
    teacher = make_teacher(small_config(stochastic_length=1.2)).train()
    batch = make_batch([40], [(0, 8), (0, 30), (0, 40)])
    history = batch.history
    assert history is not None
    events = {name: column[:8] for name, column in history.events.items()}
    one = torch.zeros(1, dtype=torch.long)
    alone = replace(batch.rows(one), history=History(events, torch.tensor([0, 8]), one, torch.tensor([8])))
    expected = teacher.training_scores(alone).logits["click"]
    for seed in range(20):
        torch.manual_seed(seed)
        assert torch.allclose(teacher.training_scores(batch).logits["click"][:1], expected, atol=1e-6)


def areas(lengths: list[int], area: float, draws: int, *, balance: bool) -> torch.Tensor:
    """``[draws, U]`` squares of the lengths that are left."""
    history = history_of(lengths, [(0, lengths[0])])
    limit, alpha = max(lengths), math.log(area) / math.log(max(lengths))
    torch.manual_seed(0)
    kept = [stochastic_length(history, limit, alpha, balance=balance).lengths for _ in range(draws)]
    return torch.stack(kept).double().square()


def test_balancing_keeps_each_historys_chance_and_evens_out_the_sum() -> None:
    lengths = [100] * 12 + [60] * 12 + [10] * 6
    plain, even = (areas(lengths, 1600.0, 1000, balance=balance) for balance in (False, True))
    chance = torch.tensor([1600 / length**2 if length > 40 else 1.0 for length in lengths]).double()
    whole = torch.tensor(lengths).double().square()
    for found in (plain, even):
        share = (found == whole).double().mean(0)
        assert bool(((share - chance).abs() < 5 * (chance * (1 - chance) / 1000).sqrt() + 1e-9).all())
    expected = expected_area(torch.tensor(lengths), 1600.0)
    assert float(even.sum(1).mean()) == pytest.approx(expected, rel=0.02)
    assert float(even.sum(1).std()) < 0.4 * float(plain.sum(1).std())


@pytest.mark.parametrize("lengths", [[200], [200, 150], [200] * 4, [200, 120, 90, 61, 60, 10], [200] * 300])
def test_few_long_histories_too_cost_what_is_published_in_the_mean(lengths: list[int]) -> None:
    area, draws = 3600.0, 50 if len(lengths) > 100 else 2000
    even, expected = areas(lengths, area, draws, balance=True).sum(1), expected_area(torch.tensor(lengths), area)
    error = float(even.std()) / draws**0.5
    # a length is rounded down, which loses up to 2 * 60 of each thinned history's area
    assert expected - 4 * error - 120 * len(lengths) < float(even.mean()) < expected * (1 + 1e-9) + 4 * error
    assert 120 * len(lengths) < 0.05 * expected


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(61, 600), min_size=1, max_size=40))
@example(lengths=[900] * 10 + [61] * 250)
@example(lengths=[600])  # stays whole once in a hundred draws
def test_the_mean_over_all_draws_is_the_published_one(lengths: list[int]) -> None:
    square, area = torch.tensor(lengths).double().square(), 3600.0
    starts = ((torch.arange(20_000) + 0.5) / 20_000).double()[:, None]
    fixed = torch.where(systematic(area / square, starts), square, area * LEAST).sum(1)
    found, expected = float(fixed.clamp(min=level_of(square, area)).mean()), expected_area(torch.tensor(lengths), area)
    unseen = len(lengths) * float(square.max()) / 20_000  # each history may stay whole in one draw too many or too few
    assert unseen < 0.02 * expected
    assert found == pytest.approx(expected, rel=1e-4, abs=unseen)


@given(lengths=st.lists(st.integers(0, 50), max_size=12), seed=st.integers(0, 999), data=st.data())
def test_systematic_draws_differ_from_their_expected_number_by_less_than_one(
    lengths: list[int], seed: int, data: st.DataObject
) -> None:
    chance = torch.tensor([data.draw(st.floats(0, 1)) for _ in lengths], dtype=torch.float64)
    torch.manual_seed(seed)
    chosen = systematic(chance, torch.rand(1, dtype=torch.float64))
    assert abs(float(chosen.sum()) - float(chance.sum())) < 1 + 1e-9


RANK = """
import sys, torch
from torch import distributed as dist
sys.path.insert(0, sys.argv[4])
from hstu_cases import make_batch
from recdistill_hstu.stochastic import expected_area, balanced_area, stochastic_length
rank, world = int(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=world)
lengths = [100] * 8 + [70] * 8 if rank else [60] * 10 + [45] * 4
found = balanced_area(torch.tensor(lengths), 1600.0)
torch.manual_seed(rank)
history = make_batch(lengths, [(0, lengths[0])]).history
thinned = [stochastic_length(history, 100, 1.6, balance=True).lengths.double() for _ in range(200)]
load = float(torch.stack(thinned).square().sum(1).mean())
print(expected_area(torch.tensor(lengths), 1600.0), expected_area(torch.tensor(lengths), found), load)
"""


def test_two_ranks_with_other_histories_do_the_same_work(tmp_path: Path) -> None:
    arguments = ["2", str(tmp_path / "meet"), str(Path(__file__).parent)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), *arguments], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    (before, even, load), (other, other_even, other_load) = (
        [float(word) for word in rank.communicate(timeout=120)[0].split()] for rank in ranks
    )
    assert other > 1.3 * before
    assert even == pytest.approx((before + other) / 2, rel=1e-9)
    assert other_even == pytest.approx(even, rel=1e-9)
    assert load == pytest.approx(other_load, rel=0.05)


def test_a_balanced_teacher_trains_on_thinned_histories_and_a_seed_repeats_it() -> None:
    batch = make_batch([40, 38, 5], [(0, 40), (1, 33), (2, 5)])
    teacher = make_teacher(small_config(stochastic_length=1.2, stochastic_balance=True)).train()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(teacher.training_scores(batch).logits["click"].detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
