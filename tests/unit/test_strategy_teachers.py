"""Several teachers at once: fixed and learnt weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from core_cases import component, make_batch
from strategy_cases import ROWS, Model, made, slopes, taught
from torch import Tensor
from torch.nn import functional

from recdistill_core import Batch, TeacherSignal
from recdistill_core.errors import DataError
from recdistill_core.label_choice import mean_labels
from recdistill_core.labels import LabelChoice, LabelPolicy
from recdistill_strategies.teachers import MultiTeacher


def taught_by(*teachers: tuple[Tensor, Tensor]) -> Batch:
    """Labels of several teachers, as the policy all_of gives them."""
    members = [TeacherSignal({"click": logit}, {"click": valid}, str(at)) for at, (logit, valid) in enumerate(teachers)]
    choice = LabelChoice(tuple(member.version for member in members), LabelPolicy.ALL_OF)
    return make_batch(len(teachers[0][0])).with_teacher(mean_labels(choice, members, "snapshot").signal)


def two_teachers() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    rows = torch.arange(ROWS)
    return (torch.linspace(-3, 3, ROWS), rows % 2 == 0), (torch.linspace(2, -2, ROWS), rows % 3 == 0)


@pytest.mark.parametrize("weights", [[], [1.0, 3.0], [0.0, 1.0]])
def test_several_teachers_are_mixed_by_weight_where_they_have_labels(weights: list[float]) -> None:
    teachers = two_teachers()
    batch = taught_by(*teachers)
    model = Model(made("multi_teacher", weights=weights))
    found = model.terms(batch)
    logit = model.towers["auxiliary"](model.shared(batch.numeric).tanh())[:, 0]
    for row in range(ROWS):
        each = weights or [1.0, 1.0]
        there = [(w, z[row]) for w, (z, valid) in zip(each, teachers, strict=True) if valid[row] and w]
        wanted = torch.zeros(())
        if there:
            mixed = sum(w * z for w, z in there) / sum(w for w, _ in there)
            wanted = functional.binary_cross_entropy_with_logits(logit[row], torch.sigmoid(torch.as_tensor(mixed)))
        torch.testing.assert_close(found["auxiliary/soft"][row], wanted)


def test_other_strategies_learn_the_mean_of_several_teachers() -> None:
    batch = taught_by(*two_teachers())
    equal, plain = Model(made("multi_teacher")), Model(made("rec_distill"))
    one, other = equal.terms(batch), plain.terms(batch)
    for term in other:
        torch.testing.assert_close(one[term], other[term])


def test_learnt_weights_find_the_better_teacher_and_nothing_else_moves_them() -> None:
    torch.manual_seed(0)
    truth, count = torch.randn(20_000), 20_000
    there = torch.ones(count, dtype=torch.bool)
    batch = taught_by((torch.randn(count), there), (truth, there))
    label = (torch.rand(count) < torch.sigmoid(truth)).float()
    batch = replace(batch, labels={"click": label}, observed={"click": there})
    model = Model(made("multi_teacher", weights=[1.0, 1.0], learned=True))
    strategy = model.objective.strategy
    assert isinstance(strategy, MultiTeacher)
    for name, term in model.terms(batch).items():
        moved = any(slope.any() for slope in slopes(term.sum(), strategy))
        assert moved == (name == "weights/hard"), name
    optimizer = torch.optim.Adam(strategy.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        model.terms(batch)["weights/hard"].mean().backward()
        optimizer.step()
    assert strategy.weights is not None
    assert float(strategy.weights.detach().softmax(0)[1]) > 0.9


def test_weights_for_other_teachers_than_there_are_are_refused() -> None:
    model = Model(made("multi_teacher", weights=[1.0, 2.0, 3.0]))
    with pytest.raises(DataError, match="has 3 weights, and the labels are of 2 teachers") as caught:
        model.terms(taught_by(*two_teachers()))
    assert "'own' being as many as the run has teachers" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": [1.0, -1.0]}, "weights must be finite and >= 0"),
        ({"weights": [0.0, 0.0]}, "one of them more than 0"),
        ({"learned": True}, "learned weights begin somewhere: give one > 0 per teacher"),
        ({"lr": 0.0}, "lr must be finite and > 0"),
    ],
)
def test_weights_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        component("strategy", "multi_teacher", **values)


def test_a_batch_keeps_the_labels_of_each_teacher_when_rows_are_picked() -> None:
    batch = taught_by(*two_teachers())
    index = torch.tensor([4, 0, 7])
    signal = batch.rows(index).teacher
    assert signal is not None
    assert batch.teacher is not None
    for member, whole in zip(signal.members, batch.teacher.members, strict=True):
        assert torch.equal(member.logits["click"], whole.logits["click"][index])
        assert torch.equal(member.valid["click"], whole.valid["click"][index])


def test_the_confidence_in_several_teachers_is_that_in_their_mixture() -> None:
    there = torch.ones(ROWS, dtype=torch.bool)
    batch = taught_by((torch.full((ROWS,), 4.0), there), (torch.full((ROWS,), -4.0), there))
    alone = Model(made("rec_distill", confidence="entropy")).terms(taught(torch.full((ROWS,), 4.0)))
    mixed = Model(made("multi_teacher", weights=[1.0, 0.0], confidence="entropy")).terms(batch)
    assert alone["auxiliary/soft"].all()
    torch.testing.assert_close(mixed["auxiliary/soft"], alone["auxiliary/soft"])
