"""The soft losses against numpy, at the ends of the number range, and where a row's weight is 0."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import recdistill_soft
from recdistill_core import BuildContext
from recdistill_core.errors import DataError
from recdistill_core.interfaces import DistillationLoss

CONFIGS = {"soft_ce": {}, "kl": {"temperature": 3.0}, "mse": {}}


def build(name: str, **values: float) -> DistillationLoss:
    component = {entry.name: entry for entry in recdistill_soft.recdistill_losses()}[name]
    return component.build(component.config(**(values or CONFIGS[name])), BuildContext())


def numpy_loss(name: str, student: np.ndarray, teacher: np.ndarray, tau: float = 3.0) -> np.ndarray:
    def p(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    if name == "mse":
        return (p(student) - p(teacher)) ** 2
    if name == "kl":
        s, t = p(student / tau), p(teacher / tau)
        return tau**2 * (t * np.log(t / s) + (1 - t) * np.log((1 - t) / (1 - s)))
    s, t = p(student), p(teacher)
    return -(t * np.log(s) + (1 - t) * np.log(1 - s))


def call(loss: DistillationLoss, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    return loss(student, teacher, None, torch.ones_like(student) if weight is None else weight)


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(*[st.floats(-12, 12)] * 2, st.floats(0, 5)), min_size=1, max_size=20))
def test_equals_numpy(name: str, rows: list[tuple[float, float, float]]) -> None:
    student, teacher, weight = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    expected = weight.numpy() * numpy_loss(name, student.numpy(), teacher.numpy())
    np.testing.assert_allclose(call(build(name), student, teacher, weight), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_is_right(name: str) -> None:
    torch.manual_seed(0)
    student = (3 * torch.randn(16, dtype=torch.float64)).requires_grad_()
    teacher, weight = 3 * torch.randn(16, dtype=torch.float64), torch.rand(16, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: call(build(name), z, teacher, weight), (student,))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_the_ends_of_the_range(name: str, dtype: torch.dtype) -> None:
    ends = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], dtype=dtype)
    student, teacher = (axis.flatten() for axis in torch.meshgrid(ends, ends, indexing="ij"))
    student = student.clone().requires_grad_()
    losses = call(build(name), student, teacher)
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert torch.isfinite(student.grad).all()
    assert (losses > -1e-6).all()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [1e4, -1e4, float("inf"), float("nan")])
def test_weight_0_gives_exactly_0_and_no_gradient(name: str, dtype: torch.dtype, bad: float) -> None:
    student = torch.tensor([bad, 0.5, bad], dtype=dtype).requires_grad_()
    teacher = torch.tensor([0.0, -1.0, bad], dtype=dtype)
    weight = torch.tensor([0.0, 2.0, 0.0])
    losses = call(build(name), student, teacher, weight)
    losses.sum().backward()
    assert losses[0] == losses[2] == student.grad[0] == student.grad[2] == 0
    assert losses[1] > 0
    assert student.grad[1] > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    student, teacher = (torch.randn(4, requires_grad=True) for _ in range(2))
    call(build(name), student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_soft_ce_and_kl_at_temperature_1_have_one_gradient() -> None:
    teacher = torch.linspace(-6, 6, 13, dtype=torch.float64)
    gradients = []
    for loss in (build("soft_ce"), build("kl", temperature=1.0)):
        student = torch.linspace(5, -3, 13, dtype=torch.float64).requires_grad_()
        gradients.append(torch.autograd.grad(call(loss, student, teacher).sum(), student)[0])
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], torch.sigmoid(student.detach()) - torch.sigmoid(teacher))


def test_mse_gradient_vanishes_at_saturation_and_soft_ce_does_not() -> None:
    teacher = torch.zeros(1)
    gradient = {}
    for name in ("mse", "soft_ce"):
        student = torch.full((1,), -14.0, requires_grad=True)
        call(build(name), student, teacher).sum().backward()
        gradient[name] = float(student.grad.abs())
    assert gradient["mse"] < 1e-6
    assert gradient["soft_ce"] == pytest.approx(0.5, abs=1e-5)


def test_two_halves_equal_the_whole() -> None:
    student, teacher, weight = torch.randn(8), torch.randn(8), torch.rand(8)
    for name in CONFIGS:
        whole = call(build(name), student, teacher, weight)
        halves = [call(build(name), student[part], teacher[part], weight[part]) for part in (slice(4), slice(4, 8))]
        assert torch.equal(whole, torch.cat(halves))


def test_broadcastable_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"all have one shape \[N\]") as caught:
        build("soft_ce")(torch.zeros(3, 1), torch.zeros(3), None, torch.ones(3))
    assert "shapes [3, 1], [3], [3]" in str(caught.value)
    assert "squeeze" in str(caught.value)


@pytest.mark.parametrize("tau", [0.0, -1.0, 1e-3, 1e3, float("nan"), float("inf")])
def test_temperature_out_of_range(tau: float) -> None:
    with pytest.raises(ValueError, match=r"temperature must lie in \[0.01, 100\], got"):
        recdistill_soft.KLConfig(temperature=tau)


def test_hook_module_imports_no_torch() -> None:
    code = "import sys, recdistill_soft; recdistill_soft.recdistill_losses(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
