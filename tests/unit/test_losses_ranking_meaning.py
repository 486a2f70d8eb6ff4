"""What each ranking loss is for: calibration, the top of a list, a closed set, popularity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking_cases import ITEMS, Rows, build, call, fixed_rows, unkd
from torch import Tensor

import recdistill_ranking
import recdistill_soft
from recdistill_core import BuildContext
from recdistill_core.batch import Share
from recdistill_core.interfaces import DistillationLoss
from recdistill_ranking.popularity import UnKD, popularity_groups
from recdistill_ranking.requests import Requests


def listed(student: Tensor, teacher: Tensor) -> Rows:
    """Requests from matrices ``[G, M]`` of logits."""
    count, width = student.shape
    request = torch.arange(count).repeat_interleave(width)
    item = torch.arange(width).repeat(count)
    return Rows(student.flatten(), teacher.flatten(), torch.ones(count * width).double(), request, item)


def expected_slope(loss: DistillationLoss, student: Tensor, teacher: Tensor, chance: Tensor) -> Tensor:
    """``[M]`` expected gradient of one list's logits ``student [M]`` over worlds of ``teacher [W, M]``."""
    logit = student.clone().requires_grad_()
    values = call(loss, listed(logit.expand(len(teacher), -1), teacher)).reshape(teacher.shape)
    (slope,) = torch.autograd.grad((chance[:, None] * values).sum(), logit)
    return slope


def soft_ce() -> DistillationLoss:
    entry = recdistill_soft.recdistill_losses()[0]
    return entry.build(entry.config(), BuildContext())


CHANCE = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
#: True probabilities in three worlds that the student cannot tell apart: a page on which everything is clicked more ...
PAGE = torch.tensor([0.4, 1.0, 1.9], dtype=torch.float64)[:, None] * torch.tensor([0.05, 0.2, 0.4]).double()
#: ... and worlds in which now this row is better and now that one.
ROW = torch.tensor([[0.05, 0.5, 0.3], [0.3, 0.1, 0.3], [0.6, 0.2, 0.05]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("case", "worlds", "rests"),
    [
        ("clid", PAGE, True),
        ("clid-mass", PAGE, True),
        ("listnet", PAGE, False),
        ("clid", ROW, False),
        ("clid-mass", ROW, True),
        ("listnet", ROW, False),
    ],
    ids=lambda value: "page" if value is PAGE else "row" if value is ROW else None,
)
def test_calibration_of_a_student_that_knows_less(case: str, worlds: Tensor, rests: bool) -> None:
    """At the student's own true probabilities, the mean over worlds, soft_ce rests; does it with the list loss?"""
    calibrated = torch.logit(CHANCE @ worlds)
    teacher = torch.logit(worlds)
    torch.testing.assert_close(expected_slope(soft_ce(), calibrated, teacher, CHANCE), torch.zeros(3).double())
    slope = expected_slope(build(case), calibrated, teacher, CHANCE)
    assert (float(slope.abs().max()) < 1e-9) == rests
    assert rests or float(slope.abs().max()) > 1e-3


@pytest.mark.parametrize("case", ["listnet", "clid", "clid-mass", "rce_kd"])
def test_listwise_losses_are_0_at_the_teacher_alone(case: str) -> None:
    rows = fixed_rows()
    at_the_teacher = call(build(case), replace(rows, student=rows.teacher))
    torch.testing.assert_close(at_the_teacher, torch.zeros(len(at_the_teacher)).double())
    assert float(call(build(case), rows).min()) >= -1e-12
    assert float(call(build(case), rows).sum()) > 0.1


def test_a_shift_moves_clid_and_not_listnet() -> None:
    rows = fixed_rows()
    shifted = replace(rows, student=rows.student + 3)
    torch.testing.assert_close(call(build("listnet"), shifted), call(build("listnet"), rows))
    assert not torch.allclose(call(build("clid"), shifted), call(build("clid"), rows))


def test_the_sum_over_a_request_is_the_cross_entropy_less_the_entropy() -> None:
    rows = fixed_rows()
    inside = rows.request == 5
    rows = replace(rows.at(inside), weight=torch.ones(6).double())
    teacher, student = (torch.softmax(side / 2, 0) for side in (rows.teacher, rows.student))
    wanted = 4 * (teacher * (teacher.log() - student.log())).sum()
    torch.testing.assert_close(call(build("listnet"), rows).sum(), wanted)


def test_ranking_distillation_leaves_rows_alone_that_the_student_has_on_top() -> None:
    teacher = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).double()
    swapped = torch.tensor([[3.0, 1.0, 2.0, 0.0]]).double()
    found = call(build("rd-dynamic"), listed(swapped, teacher))
    assert (found > 0).tolist() == [False, True, False, False]
    assert call(build("rd-dynamic"), listed(teacher, teacher)).tolist() == [0.0] * 4
    assert (call(build("rd"), listed(teacher, teacher)) > 0).tolist() == [True, True, True, False]


def test_rrd_gives_uninteresting_rows_no_order() -> None:
    teacher = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).double()
    student = torch.tensor([[1.0, 0.5, -0.3, 0.8]]).double()
    exchanged = student[:, [0, 1, 3, 2]]
    one, two = (call(build("rrd"), listed(side, teacher)) for side in (student, exchanged))
    torch.testing.assert_close(one, two)
    higher = call(build("rrd"), listed(student + torch.tensor([0.0, 0, 0, 1]), teacher))
    assert bool((higher[:2] > one[:2]).all())


def test_rce_kd_looks_as_far_down_as_the_last_row_that_the_student_misses() -> None:
    teacher = torch.tensor([[9.0, 7.5, 0.0, 0.1, 0.2]]).double()  # its top two: rows 0 and 1
    student = torch.tensor([[5.0, 1.0, 4.0, 3.0, 0.0]]).double()  # its top two: rows 0 and 2; row 1 is its fourth
    found = call(build("rce_kd"), listed(student, teacher))
    assert (found > 0).tolist() == [True, True, True, True, False]
    agreed = call(build("rce_kd"), listed(student[:, [0, 2, 1, 3, 4]], teacher))
    assert (agreed > 0).tolist() == [True, True, False, False, False]


def test_equal_logits_keep_the_order_of_the_rows() -> None:
    ids = torch.tensor([4, 2, 4, 4, 2])
    member = torch.tensor([True, True, True, False, True])
    requests = Requests(ids, member)
    assert requests.rank(torch.tensor([1.0, 0.0, 1.0, 5.0, 2.0])).tolist() == [0, 1, 1, 2**62, 0]
    assert requests.size.tolist() == [2, 2, 2, 2, 2]


counts = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)


@settings(max_examples=100, deadline=None)
@given(seen=counts, groups=st.integers(1, 5))
def test_popularity_groups_are_ordered_and_share_the_impressions(seen: list[int], groups: int) -> None:
    found = popularity_groups(torch.tensor(seen), groups).tolist()
    for one, first in zip(seen, found, strict=True):
        assert 0 <= first < groups
        assert one > 0 or first == 0
        for two, second in zip(seen, found, strict=True):
            assert one >= two or first <= second
    for group in range(groups):  # a group holds its share, and at most one item more
        inside = [count for count, place in zip(seen, found, strict=True) if place == group]
        assert sum(inside) <= sum(seen) / groups + max(inside, default=0)


def rows_of(item: list[int], teacher: list[float]) -> Rows:
    one = listed(torch.linspace(-1, 1, len(item)).double()[None], torch.tensor(teacher).double()[None])
    return replace(one, item=torch.tensor(item))


def shown(loss: UnKD, items: list[int]) -> None:
    """Let the loss count a batch of items."""
    loss.advance(rows_of(items, [0.0] * len(items)).batch())


def test_unkd_compares_rows_of_like_popularity_only() -> None:
    loss = UnKD(ITEMS, groups=2, decay=1.5)
    shown(loss, [1] * 20 + [2] * 20 + [3] * 2 + [4] * 2)
    assert loss.group[[1, 2, 3, 4]].tolist() == [0, 1, 0, 0]  # 1 lies before the middle of all impressions, 2 behind
    shown(loss, [2] * 36)
    assert loss.group[[1, 2, 3, 4]].tolist() == [0, 1, 0, 0]
    rows = rows_of([2, 1, 3, 2, 4], [3.0, 2.0, 1.0, 0.0, -1.0])
    found = call(loss.eval(), rows).numpy()
    for inside in ([0, 3], [1, 2, 4]):
        sides = ([float(side[row]) for row in inside] for side in (rows.student, rows.teacher))
        np.testing.assert_allclose(found[inside], unkd(*sides, groups=2, decay=1.5))


def test_a_teacher_that_only_knows_popularity_teaches_unkd_nothing() -> None:
    loss = UnKD(ITEMS, groups=3)
    shown(loss, [1] * 2 + [2] * 10 + [3] * 11)
    assert loss.group[[1, 2, 3]].tolist() == [0, 0, 2]
    shown(loss, [2] * 10 + [1] * 8)
    assert loss.group[[1, 2, 3]].tolist() == [0, 2, 1]
    rows = rows_of([1, 2, 3], [1.0, 3.0, 2.0])
    assert call(loss.eval(), rows).tolist() == [0.0] * 3
    assert float(call(build("listnet"), rows).sum()) > 0.1


def test_unkd_counts_a_batch_once_after_all_its_heads() -> None:
    rows = rows_of([1, 1, 1, 2], [3.0, 2.0, 1.0, 0.0])
    loss = build("unkd")
    assert isinstance(loss, UnKD)
    first = call(loss, rows)
    torch.testing.assert_close(first, torch.tensor(unkd(rows.student.tolist(), rows.teacher.tolist(), 1, 1.5)).double())
    assert torch.equal(call(loss, rows), first)  # another head of the same batch
    assert not loss.seen.any()
    loss.advance(rows.batch())
    assert loss.seen[[1, 2]].tolist() == [3, 1]
    assert not torch.allclose(call(loss, rows), first)


def test_unkd_leaves_rows_that_stand_in_for_another_processs_to_that_one() -> None:
    rows = rows_of([1, 1], [3.0, 2.0])
    loss = build("unkd")
    assert isinstance(loss, UnKD)
    loss.advance(replace(rows.batch(), share=Share(torch.arange(2), 2, idle=True)))
    assert not loss.seen.any()


def test_unkd_goes_on_from_a_checkpoint() -> None:
    batches = [replace(fixed_rows(seed), item=torch.randint(ITEMS, (21,))) for seed in range(6)]
    whole, before, after = build("unkd"), build("unkd"), build("unkd")

    def trained(loss: DistillationLoss, rows: Rows) -> Tensor:
        assert isinstance(loss, UnKD)
        values = call(loss, rows)
        loss.advance(rows.batch())
        return values

    wanted = [trained(whole, rows) for rows in batches]
    for rows in batches[:3]:
        trained(before, rows)
    after.load_state_dict(before.state_dict())
    for rows, values in zip(batches[3:], wanted[3:], strict=True):
        assert torch.equal(trained(after, rows), values)


def test_unkd_needs_a_vocabulary() -> None:
    entry = {one.name: one for one in recdistill_ranking.recdistill_losses()}["unkd"]
    with pytest.raises(ValueError, match="this component needs a dataset's schema to be built"):
        entry.build(entry.config(), BuildContext())
