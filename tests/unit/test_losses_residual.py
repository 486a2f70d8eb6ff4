"""The residual loss: against a plain loop, what it is in expectation, and whose labels it reads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import recdistill_soft
from recdistill_core import Batch, BuildContext
from recdistill_core.errors import DataError, UsageError
from recdistill_core.interfaces import DistillationLoss


def build(task: str = "", tasks: tuple[str, ...] = ("click",)) -> DistillationLoss:
    entry = {one.name: one for one in recdistill_soft.recdistill_losses()}["residual"]
    return entry.build(entry.config(task=task), BuildContext(tasks=tasks))


def batch_of(label: Tensor, observed: Tensor | None = None) -> Batch:
    ids = torch.arange(len(label))
    seen = torch.ones(len(label), dtype=torch.bool) if observed is None else observed
    plain = Batch(ids, ids, ids, ids, ids, ids[:, None], torch.zeros(len(ids), 0))
    return replace(plain, labels={"click": label.float()}, observed={"click": seen})


def slope(student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    logit = student.clone().requires_grad_()
    (found,) = torch.autograd.grad(build()(logit, teacher, batch, torch.ones_like(teacher)).sum(), logit)
    return found


def divergence(p_t: float, p_s: float) -> float:
    return p_t * math.log(p_t / p_s) + (1 - p_t) * math.log((1 - p_t) / (1 - p_s))


def plain_loss(z_s: float, z_t: float, label: int | None) -> float:
    p_s, p_t = (1 / (1 + math.exp(-z)) for z in (z_s, z_t))
    if label is None:
        return divergence(p_t, p_s)
    if abs(label - p_t) >= abs(label - p_s):
        return 0.0
    return divergence(p_t, p_s) / (p_t if label else 1 - p_t)


some_row = st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.sampled_from([0, 1, None]), st.floats(0, 3))


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(some_row, min_size=1, max_size=12))
def test_equals_a_loop(rows: list[tuple[float, float, int | None, float]]) -> None:
    student, teacher, weight = (torch.tensor([row[at] for row in rows], dtype=torch.float64) for at in (0, 1, 3))
    label = torch.tensor([float("nan") if row[2] is None else row[2] for row in rows])
    batch = batch_of(label, ~label.isnan())
    wanted = [row[3] * plain_loss(*row[:3]) for row in rows]
    np.testing.assert_allclose(build()(student, teacher, batch, weight), wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 8.0, 20.0])
def test_its_slope_is_the_share_that_the_student_lacks(scale: float) -> None:
    teacher, student = scale * torch.randn(2, 200, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    p_s, p_t = torch.sigmoid(student), torch.sigmoid(teacher)
    up = slope(student, teacher, batch_of(torch.ones(200)))
    torch.testing.assert_close(up, -(p_t - p_s).clamp(min=0) / p_t)
    down = slope(student, teacher, batch_of(torch.zeros(200)))
    n_s, n_t = torch.sigmoid(-student), torch.sigmoid(-teacher)  # 1 - p would round
    torch.testing.assert_close(down, (n_t - n_s).clamp(min=0) / n_t)
    assert float(torch.cat([up, down]).abs().max()) <= 1 + 1e-9


def test_no_slope_where_both_agree() -> None:
    logit = torch.tensor([-30.0, -2.0, 0.0, 0.5, 30.0], dtype=torch.float64)
    for label in (torch.zeros(5), torch.ones(5)):
        assert slope(logit, logit, batch_of(label)).abs().max() < 1e-12


def test_under_a_calibrated_teacher_it_is_soft_ce_in_expectation() -> None:
    draw = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(100, generator=draw, dtype=torch.float64) for _ in range(2))
    one, zero = (slope(student, teacher, batch_of(torch.full((100,), label))) for label in (1.0, 0.0))
    p = torch.sigmoid(teacher)
    torch.testing.assert_close(p * one + (1 - p) * zero, torch.sigmoid(student) - p)
    unseen = slope(student, teacher, batch_of(torch.zeros(100), torch.zeros(100, dtype=torch.bool)))
    torch.testing.assert_close(unseen, torch.sigmoid(student) - p)


def test_a_claim_that_labels_do_not_bear_out_weighs_less() -> None:
    truth, claimed = torch.tensor([0.05]).double(), torch.tensor([0.5]).double()
    student = torch.logit(truth)
    one, zero = (slope(student, torch.logit(claimed), batch_of(torch.tensor([label]))) for label in (1.0, 0.0))
    found = truth * one + (1 - truth) * zero
    torch.testing.assert_close(found, truth / claimed * (truth - claimed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_the_ends_of_the_range(dtype: torch.dtype) -> None:
    ends = torch.tensor([-1e4, -40.0, 0.0, 40.0, 1e4], dtype=dtype)
    student, teacher = (axis.repeat(2) for axis in torch.cartesian_prod(ends, ends).unbind(1))
    logit = student.clone().requires_grad_()
    found = build()(logit, teacher, batch_of(torch.arange(50) // 25), torch.ones(50))
    found.sum().backward()
    assert found.dtype == torch.float32
    assert bool(torch.isfinite(found).all())
    assert bool((found >= 0).all())
    assert bool(torch.isfinite(logit.grad).all())


def test_rows_of_weight_0_are_absent() -> None:
    student = torch.tensor([float("nan"), 1e4, 1.0]).requires_grad_()
    found = build()(student, torch.tensor([3.0, -1e4, 2.0]), batch_of(torch.ones(3)), torch.tensor([0.0, 0.0, 1.0]))
    found.sum().backward()
    assert found[:2].tolist() == student.grad[:2].tolist() == [0.0, 0.0]
    assert float(student.grad[2]) < 0


def test_whose_labels_it_reads() -> None:
    assert build(tasks=("like",)).task == "like"
    assert build("click", ("click", "like")).task == "click"
    assert build("click", ()).task == "click"
    with pytest.raises(UsageError) as error:
        build(tasks=("click", "like"))
    assert str(error.value) == (
        "the residual loss reads the labels of one task, and 2 were named\n  where: tasks: click, like\n"
        "  to do: set its task, or build it with a context of one task"
    )
    with pytest.raises(UsageError) as error:
        build(tasks=())
    assert "where: tasks: none" in str(error.value)
    with pytest.raises(UsageError) as error:
        build("click", ("like",))
    assert str(error.value) == (
        "the residual loss was set to read the labels of task 'click', and is built for another one\n"
        "  where: tasks: like\n  to do: leave its task out; a run builds one loss for each task"
    )


def test_a_batch_without_the_labels_is_refused() -> None:
    rows = batch_of(torch.ones(2))
    with pytest.raises(DataError) as error:
        build("like", ())(torch.zeros(2), torch.zeros(2), rows, torch.ones(2))
    assert str(error.value) == (
        "the batch has no labels of task 'like', which the residual loss compares with\n"
        "  where: residual loss, labels of click\n"
        "  to do: name one of these tasks, or use soft_ce, which reads no labels"
    )
    with pytest.raises(DataError, match=r"all have one shape \[N\]"):
        build()(torch.zeros(2, 1), torch.zeros(2), rows, torch.ones(2))
