"""How a batch is dealt to processes, and what a process knows of the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from core_cases import make_batch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from recdistill_core.batch import Share
from recdistill_core.interfaces import TrainableTeacher, outermost_lists
from recdistill_core.ranks import from_first, rank_and_world, rows_of_all_ranks, sum_over_ranks, whole
from recdistill_lightning.shares import cuts, deal, share_of

#: Users of one batch in order, each with the sizes of its requests.
BATCHES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=12)


def columns(users: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    user = np.repeat(np.arange(len(users)), [sum(sizes) for sizes in users])
    sizes = [size for of_user in users for size in of_user]
    return user, np.repeat(np.arange(len(sizes)), sizes)


@given(BATCHES, st.integers(1, 9))
def test_the_parts_are_the_batch_and_no_request_is_cut(users: list[list[int]], processes: int) -> None:
    user, request = columns(users)
    bounds = cuts(user, request, processes)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, len(user), processes + 1)
    assert (np.diff(bounds) >= 0).all()
    for place in bounds[1:-1]:
        if 0 < place < len(user):
            assert request[place - 1] != request[place]
    rows = np.arange(100, 100 + len(user))
    dealt = [deal(rows, user, request, rank, processes) for rank in range(processes)]
    held = [part.rows for part in dealt if not part.idle]
    np.testing.assert_array_equal(np.concatenate(held), rows)
    for part in dealt:
        assert part.rows.size
        np.testing.assert_array_equal(part.whole, rows)


@given(BATCHES, st.integers(1, 9))
def test_weights_make_the_mean_of_the_parts_that_of_all_rows(users: list[list[int]], processes: int) -> None:
    user, request = columns(users)
    values = torch.arange(float(len(user)), dtype=torch.float64) ** 2
    dealt = [deal(np.arange(len(user)), user, request, rank, processes) for rank in range(processes)]
    ids = torch.arange(len(user))
    parts = [values[part.rows].mean() * Share(ids, processes, part.idle).weight(len(part.rows)) for part in dealt]
    torch.testing.assert_close(torch.stack(parts).mean(), values.mean())


def test_users_stay_whole_unless_that_moves_a_cut_too_far() -> None:
    user, request = columns([[3, 3], [2, 2]])
    assert cuts(user, request, 2).tolist() == [0, 6, 10]
    user, request = columns([[4] * 4, [1]])  # one user has nearly all rows: its requests are dealt
    assert cuts(user, request, 2).tolist() == [0, 8, 17]
    assert cuts(np.zeros(2), np.zeros(2), 3).tolist() == [0, 0, 2, 2]  # and a request never is


def test_one_process_is_its_own_whole() -> None:
    assert rank_and_world() == (0, 1)
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    summed = sum_over_ranks(values)
    assert torch.equal(summed, values.detach())
    assert not summed.requires_grad
    assert summed.data_ptr() != values.data_ptr()
    rows = torch.arange(6).view(3, 2)
    assert rows_of_all_ranks(rows) is rows
    assert from_first("one") == "one"
    assert torch.equal(whole(values), values.detach())
    batch = make_batch(4)
    assert share_of(batch) is batch


def test_a_share_stays_on_the_cpu_and_with_its_batch() -> None:
    batch = replace(make_batch(4), share=Share(torch.arange(9), 2))
    assert batch.to("meta").share is batch.share
    assert batch.without_outcomes().share is batch.share


class Nested(TrainableTeacher):
    """Two layers, one of which has a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)])])
        self.head = nn.Sequential(nn.Linear(2, 1))


def test_blocks_are_the_entries_of_outermost_lists() -> None:
    teacher = Nested()
    assert list(teacher.blocks()) == list(teacher.layers) == outermost_lists(teacher)


@pytest.mark.parametrize("idle", [True, False])
def test_an_idle_share_weighs_nothing(idle: bool) -> None:
    assert Share(torch.arange(10), 2, idle).weight(4) == (0.0 if idle else 0.8)
