"""The ranking losses against a plain loop, at the ends of the number range, and what must not move them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from ranking_cases import CONFIGS, Rows, build, call, expected, fixed_rows, some_rows

import recdistill_ranking
from recdistill_core.errors import DataError

every_loss = pytest.mark.parametrize("case", CONFIGS)


@every_loss
@settings(max_examples=60, deadline=None)
@given(rows=some_rows())
def test_equals_a_loop_in_numpy(case: str, rows: Rows) -> None:
    np.testing.assert_allclose(call(build(case), rows), expected(case, rows), rtol=1e-9, atol=1e-9)


@every_loss
def test_float32_is_near_float64(case: str) -> None:
    rows = fixed_rows()
    found = call(build(case), replace(rows.to(torch.float32), weight=rows.weight.float()))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected(case, rows), rtol=1e-4, atol=1e-5)


@every_loss
def test_gradient_is_that_of_the_loop(case: str) -> None:
    rows = fixed_rows(seed=3)
    student = rows.student.clone().requires_grad_()
    (found,) = torch.autograd.grad(call(build(case), replace(rows, student=student)).sum(), student)
    step = 1e-6
    for row in range(len(student)):
        sums = []
        for side in (-step, step):
            moved = rows.student.clone()
            moved[row] += side
            sums.append(expected(case, replace(rows, student=moved)).sum())
        assert float(found[row]) == pytest.approx((sums[1] - sums[0]) / (2 * step), abs=1e-6), row


@every_loss
@settings(max_examples=30, deadline=None)
@given(rows=some_rows())
def test_rows_may_stand_in_any_order(case: str, rows: Rows) -> None:
    order = torch.argsort(rows.request, stable=True)  # keeps the order of ties
    torch.testing.assert_close(call(build(case), rows.at(order)), call(build(case), rows)[order])


@every_loss
def test_a_permutation_permutes_the_losses(case: str) -> None:
    rows = fixed_rows(seed=5)
    order = torch.randperm(len(rows.request), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(call(build(case), rows.at(order)), call(build(case), rows)[order])


@every_loss
@settings(max_examples=30, deadline=None)
@given(rows=some_rows())
def test_rows_of_weight_0_change_nothing(case: str, rows: Rows) -> None:
    bad = torch.tensor([float("nan"), float("inf"), 1e4], dtype=torch.float64)
    absent = Rows(bad, bad.flip(0), torch.zeros(3).double(), torch.tensor([7, 3, 55]), torch.tensor([1, 2, 3]))
    both = Rows(*(torch.cat(pair) for pair in zip(vars(absent).values(), vars(rows).values(), strict=True)))
    student = both.student.clone().requires_grad_()
    found = call(build(case), replace(both, student=student))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    torch.testing.assert_close(found[3:].detach(), call(build(case), rows))
    gone = both.weight == 0
    assert bool((found[gone] == 0).all())
    assert bool((gradient[gone] == 0).all())
    assert bool(torch.isfinite(gradient).all())


@every_loss
def test_a_request_of_one_row_gives_exactly_0(case: str) -> None:
    rows = replace(fixed_rows(), request=torch.arange(21))
    student = rows.student.clone().requires_grad_()
    found = call(build(case), replace(rows, student=student))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert bool((found == 0).all())
    assert bool((gradient == 0).all())


@every_loss
def test_nothing_in_gives_nothing_out(case: str) -> None:
    assert call(build(case), fixed_rows().at(torch.tensor([], dtype=torch.long))).shape == (0,)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("end", [40.0, 1e4])
def test_finite_at_the_ends_of_the_range(case: str, dtype: torch.dtype, end: float) -> None:
    ends = torch.tensor([-end, 0.0, end], dtype=dtype)
    sides = torch.cartesian_prod(ends, ends).repeat(5, 1)
    request = torch.arange(len(sides)) % 7
    student = sides[:, 0].clone().requires_grad_()
    rows = Rows(student, sides[:, 1], torch.ones(len(sides)), request, request)
    found = call(build(case), rows)
    found.sum().backward()
    assert found.dtype == torch.float32
    assert bool(torch.isfinite(found).all())
    assert bool(torch.isfinite(student.grad).all())
    assert float(found.detach().min()) > -1e-3 * end


@every_loss
def test_no_gradient_reaches_the_teacher(case: str) -> None:
    rows = fixed_rows()
    student, teacher = rows.student.clone().requires_grad_(), rows.teacher.clone().requires_grad_()
    call(build(case), replace(rows, student=student, teacher=teacher)).sum().backward()
    assert teacher.grad is None
    assert bool(student.grad.any())


def test_broadcastable_shapes_are_refused() -> None:
    rows = fixed_rows()
    with pytest.raises(DataError) as caught:
        build("listnet")(rows.student[:, None], rows.teacher, rows.batch(), rows.weight)
    assert str(caught.value) == (
        "student logit, teacher logit, weight and request_id must all have one shape [N]\n"
        "  where: ranking loss, shapes [21, 1], [21], [21], [21]\n"
        "  to do: squeeze the tower's output to [N] and give one weight per row"
    )


@pytest.mark.parametrize("bad", [0.0, -1.0, 1e9, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("config", "name", "limits"),
    [
        ("ListNetConfig", "temperature", "[0.01, 100]"),
        ("RankingDistillationConfig", "k", "[1, 1000]"),
        ("RankingDistillationConfig", "decay", "[0.1, 1000]"),
        ("RRDConfig", "interesting", "[1, 1000]"),
        ("RCEKDConfig", "k", "[1, 1000]"),
        ("RCEKDConfig", "beta", "[0.01, 100]"),
        ("RCEKDConfig", "temperature", "[0.01, 100]"),
        ("UnKDConfig", "groups", "[1, 1000]"),
        ("UnKDConfig", "decay", "[0.1, 1000]"),
    ],
)
def test_settings_out_of_range_are_refused(config: str, name: str, limits: str, bad: float) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        getattr(recdistill_ranking, config)(**{name: bad})
    assert str(caught.value) == f"{name} must lie in {limits}, got {bad}"


@pytest.mark.parametrize(("config", "name"), [("RankingDistillationConfig", "mu"), ("RRDConfig", "uninteresting")])
def test_settings_that_may_be_0(config: str, name: str) -> None:
    assert getattr(getattr(recdistill_ranking, config)(**{name: 0}), name) == 0
    with pytest.raises(ValueError, match=rf"^{name} must lie in \[0, \d+\], got -1$"):
        getattr(recdistill_ranking, config)(**{name: -1})


def test_hook_module_imports_no_torch() -> None:
    code = "import sys, recdistill_ranking as r; r.recdistill_losses(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
