"""Head strategies beyond the two basic ones: what each term is, and where its gradient goes."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategy_cases import ROWS, Model, made, slopes, taught
from torch.nn import functional

from recdistill_core.strategy import scale_gradient
from recdistill_lightning import Optimisation
from recdistill_strategies.exfm import StudentAdapter, scaled_labels

# ----------------------------------------------------------------------------------------------------- ExFM's head


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=8), st.floats(0.01, 20))
def test_scaled_labels_are_the_scaled_probability_and_at_most_one(logits: list[float], scale: float) -> None:
    logit = torch.tensor(logits, dtype=torch.float64)
    wanted = (scale * torch.sigmoid(logit)).clamp(max=1.0)
    assert torch.sigmoid(scaled_labels(logit, scale)).sub(wanted).abs().max() < 2e-7
    assert torch.isfinite(scaled_labels(logit.float(), scale)).all()


def test_labels_that_are_not_scaled_are_the_teachers_bit_for_bit() -> None:
    logit = torch.randn(100)
    assert scaled_labels(logit, 1.0) is logit


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_auxiliary_head_learns_soft_labels_alone(scale: float) -> None:
    teacher = torch.linspace(-3, 3, ROWS)
    model = Model(made("exfm_aux", alpha=2.0, label_scale=scale))
    terms = model.terms(taught(teacher))
    assert list(terms) == ["main/hard", "auxiliary/soft"]
    auxiliary = model.towers["auxiliary"](model.shared(taught(teacher).numeric).tanh())[:, 0]
    target = (scale * torch.sigmoid(teacher)).clamp(max=1.0)
    wanted = 2.0 * functional.binary_cross_entropy_with_logits(auxiliary, target, reduction="none")
    torch.testing.assert_close(terms["auxiliary/soft"], wanted, rtol=1e-5, atol=1e-6)
    for slope in slopes(terms["auxiliary/soft"].sum(), model.towers["main"]):
        assert not slope.any()


@pytest.mark.parametrize("name", ["exfm_aux", "student_adapter"])
def test_the_gradient_into_the_backbone_is_scaled_and_the_heads_own_is_not(name: str) -> None:
    batch = taught(torch.linspace(-3, 3, ROWS))
    plain, scaled = Model(made(name)), Model(made(name, gradient_scale=0.25))
    one, other = plain.terms(batch), scaled.terms(batch)
    for term in one:
        assert torch.equal(one[term], other[term])  # forward it is the identity
    for head in plain.objective.auxiliary:
        term = f"{head}/soft"
        for mine, theirs in zip(
            slopes(one[term].sum(), plain.towers[head]), slopes(other[term].sum(), scaled.towers[head]), strict=True
        ):
            assert torch.equal(mine, theirs)
        for mine, theirs in zip(
            slopes(one[term].sum(), plain.shared), slopes(other[term].sum(), scaled.shared), strict=True
        ):
            assert mine.any()
            torch.testing.assert_close(0.25 * mine, theirs)
    for mine, theirs in zip(
        slopes(one["main/hard"].sum(), plain.shared), slopes(other["main/hard"].sum(), scaled.shared), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_a_scaled_gradient_passes_gradcheck() -> None:
    values = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((scale_gradient(values, 0.3) ** 2).sum(), values)
    torch.testing.assert_close(slope, 0.3 * 2 * values)


# ------------------------------------------------------------------------------------------------ the student adapter


def test_the_adapter_begins_as_the_teacher_and_learns_from_fresh_labels_alone() -> None:
    teacher = torch.linspace(-3, 3, ROWS)
    model = Model(made("student_adapter"))
    adapter = model.objective.strategy
    assert isinstance(adapter, StudentAdapter)
    assert torch.equal(adapter.adapted(teacher), teacher)
    terms = model.terms(taught(teacher))
    assert list(terms) == ["main/hard", "auxiliary/soft", "adapter/hard", "adapted/soft"]
    for name, value in terms.items():
        moved = any(slope.any() for slope in slopes(value.sum(), adapter.adapter))
        assert moved == (name == "adapter/hard"), name
    for head in model.towers.values():
        assert not any(slope.any() for slope in slopes(terms["adapter/hard"].sum(), head))


def test_the_adapted_head_learns_what_the_adapter_says() -> None:
    teacher = torch.linspace(-3, 3, ROWS)
    model = Model(made("student_adapter", beta=3.0))
    adapter = model.objective.strategy
    assert isinstance(adapter, StudentAdapter)
    with torch.no_grad():
        adapter.adapter[2].bias.fill_(0.7)  # type: ignore[union-attr, operator]  # a Linear in a Sequential
    logit = model.towers["adapted"](model.shared(taught(teacher).numeric).tanh())[:, 0]
    wanted = functional.binary_cross_entropy_with_logits(logit, torch.sigmoid(teacher + 0.7), reduction="none")
    torch.testing.assert_close(model.terms(taught(teacher))["adapted/soft"], 3.0 * wanted)


def test_the_adapter_ignores_rows_without_a_teacher() -> None:
    valid = torch.arange(ROWS) % 2 == 0
    terms = Model(made("student_adapter")).terms(taught(torch.full((ROWS,), math.nan).where(~valid, 1.0), valid))
    assert not terms["adapter/hard"][~valid].any()
    assert terms["adapter/hard"][valid].all()
    assert not terms["adapted/soft"][~valid].any()


def test_the_adapter_mends_a_stale_teacher() -> None:
    """Labels at odds of one third of what the teacher says: the adapter finds the shift of log 3."""
    torch.manual_seed(0)
    teacher = torch.randn(20_000)
    batch = taught(teacher)
    labels = torch.rand(20_000) < torch.sigmoid(teacher - math.log(3))
    seen = torch.ones(20_000, dtype=torch.bool)
    batch = replace(batch, labels={"click": labels.float()}, observed={"click": seen})
    model = Model(made("student_adapter"))
    adapter = model.objective.strategy
    assert isinstance(adapter, StudentAdapter)
    optimizer = torch.optim.Adam(adapter.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        model.terms(batch)["adapter/hard"].mean().backward()
        optimizer.step()
    inner = teacher.abs() < 1
    assert (adapter.adapted(teacher) - (teacher - math.log(3)))[inner].abs().mean() < 0.1


def test_its_own_learning_rate_is_the_step_of_two_optimisers() -> None:
    batch = taught(torch.linspace(-3, 3, ROWS))
    one = Model(made("student_adapter", lr=0.05))
    two = copy.deepcopy(one)
    adapter = two.objective.strategy
    assert isinstance(adapter, StudentAdapter)
    joint = Optimisation(lr=0.01).configure(one, 10)["optimizer"]
    rest = [part for name, part in two.named_parameters() if "adapter" not in name]
    separate = [
        torch.optim.AdamW(rest, 0.01, weight_decay=0.0),
        torch.optim.AdamW(adapter.parameters(), 0.05, weight_decay=0.0),
    ]
    for _ in range(4):
        for model, optimizers in ((one, [joint]), (two, separate)):
            for optimizer in optimizers:
                optimizer.zero_grad()
            model.objective.reduce(model.terms(batch)).backward()
            for optimizer in optimizers:
                optimizer.step()
    for (name, mine), theirs in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7, msg=name)
