"""The one place where losses meet: what reaches which tower, and what a bad teacher cannot do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from core_cases import component, make_batch
from torch import Tensor, nn
from torch.nn import functional

from recdistill_core import Batch, Debiaser, DistillationLoss, HeadStrategy, Student, TeacherSignal
from recdistill_core.errors import ConfigError, DataError
from recdistill_core.objective import Objective
from recdistill_lightning import StudentModule


class ByPropensity(Debiaser):
    """Weighs by 1 / propensity and shifts the training logit by the position."""

    def weight(self, batch: Batch, task: str) -> Tensor:
        assert batch.propensity is not None
        return 1 / batch.propensity

    def training_offset(self, batch: Batch, task: str) -> Tensor:
        assert batch.position is not None
        return -0.1 * batch.position


class Heads(nn.Module):
    """A shared backbone with a main and an auxiliary tower."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(2, 4)
        self.main = nn.Linear(4, 1)
        self.auxiliary = nn.Linear(4, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        features = self.shared(batch.numeric).tanh()
        return {"main": self.main(features)[:, 0], "auxiliary": self.auxiliary(features)[:, 0]}


def objective(strategy: str | None = "rec_distill", debiasers: tuple[Debiaser, ...] = (), **values: Any) -> Objective:
    if strategy is None:
        return Objective("click", debiasers=debiasers)
    made: HeadStrategy = component("strategy", strategy, **values)
    loss: DistillationLoss = component("loss", "soft_ce")
    return Objective("click", made, loss, debiasers)


def gradients(value: Tensor, module: nn.Module) -> list[Tensor | None]:
    return list(torch.autograd.grad(value, list(module.parameters()), allow_unused=True, retain_graph=True))


def signal(batch: Batch, logit: Tensor | float, valid: bool = True) -> Batch:
    logits = {"click": torch.as_tensor(logit, dtype=torch.float32).expand(len(batch)).clone()}
    return batch.with_teacher(TeacherSignal(logits, {"click": torch.full((len(batch),), valid)}, "v"))


@pytest.mark.parametrize("strategy", [None, "single", "rec_distill"])
@pytest.mark.parametrize("debiasers", [(), (ByPropensity(),), (component("debiaser", "sampling"), ByPropensity())])
def test_two_half_batches_equal_one_full_batch(strategy: str | None, debiasers: tuple[Debiaser, ...]) -> None:
    batch, model, made = make_batch(40), Heads().double(), objective(strategy, debiasers)
    batch = replace(batch, numeric=batch.numeric.double())

    def run(rows: Batch) -> tuple[Tensor, list[Tensor]]:
        value = made.reduce(made.terms(model(rows), rows))
        return value.detach(), [gradient for gradient in gradients(value, model) if gradient is not None]

    value, gradient = run(batch)
    halves = [run(batch.rows(index)) for index in torch.randperm(40).chunk(2)]
    torch.testing.assert_close((halves[0][0] + halves[1][0]) / 2, value, atol=1e-6, rtol=0)
    for full, one, two in zip(gradient, halves[0][1], halves[1][1], strict=True):
        torch.testing.assert_close((one + two) / 2, full, atol=1e-6, rtol=0)


def test_the_sum_is_over_terms_and_the_mean_over_all_rows() -> None:
    terms = {"a": torch.tensor([1.0, 0.0, 0.0, 3.0]), "b": torch.tensor([0.0, 0.0, 2.0, 0.0])}
    assert float(objective().reduce(terms)) == 1.5


def test_rec_distill_keeps_the_teacher_away_from_the_main_tower() -> None:
    batch, model = make_batch(20), Heads()
    terms = objective(alpha=0.7).terms(model(batch), batch)
    assert list(terms) == ["main/hard", "auxiliary/hard", "auxiliary/soft"]
    assert all(term.shape == (20,) for term in terms.values())
    soft = terms["auxiliary/soft"].sum()
    assert gradients(soft, model.main) == [None, None]
    assert all(gradient is not None and gradient.any() for gradient in gradients(soft, model.auxiliary))
    assert all(gradient is not None and gradient.any() for gradient in gradients(soft, model.shared))
    assert gradients(terms["auxiliary/hard"].sum(), model.main) == [None, None]
    assert gradients(terms["main/hard"].sum(), model.auxiliary) == [None, None]
    plain = objective(alpha=1.0).terms(model(batch), batch)
    torch.testing.assert_close(terms["auxiliary/soft"], 0.7 * plain["auxiliary/soft"])


@pytest.mark.parametrize("teacher", ["missing", "invalid", math.nan, math.inf, -math.inf, 1e30, 2.0])
def test_the_main_tower_learns_the_same_whatever_the_teacher_says(teacher: float | str) -> None:
    batch, model, made = make_batch(20), Heads(), objective()
    reference = objective(None).terms(model(batch), batch)["main/hard"]
    if isinstance(teacher, str):
        changed = signal(batch, 3.0, valid=False) if teacher == "invalid" else batch.with_teacher(None)
    else:
        changed = signal(batch, teacher)
    terms = made.terms(model(changed), changed)
    assert torch.equal(terms["main/hard"], reference)
    total = made.reduce(terms)
    assert torch.isfinite(total)
    for got, wanted in zip(gradients(total, model.main), gradients(reference.mean(), model.main), strict=True):
        assert got is not None
        assert wanted is not None
        assert torch.equal(got, wanted)
    every = gradients(total, model)
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in every)
    if teacher != 2.0:
        assert torch.equal(terms["auxiliary/soft"], torch.zeros(20))


@pytest.mark.parametrize("strategy", ["rec_distill", "single"])
def test_no_coverage_gives_exactly_zero_with_a_gradient_path(strategy: str) -> None:
    batch, model = make_batch(20).with_teacher(None), Heads()
    soft = next(term for name, term in objective(strategy).terms(model(batch), batch).items() if name.endswith("/soft"))
    assert torch.equal(soft, torch.zeros(20))
    assert soft.requires_grad
    soft.sum().backward()
    assert model.shared.weight.grad is not None
    assert not model.shared.weight.grad.any()


def test_partial_coverage_leaves_the_other_rows_at_zero() -> None:
    batch, model = make_batch(20), Heads()
    assert batch.teacher is not None
    soft = objective().terms(model(batch), batch)["auxiliary/soft"]
    assert torch.equal(soft != 0, batch.teacher.valid["click"])


@pytest.mark.parametrize("strategy", [None, "single", "rec_distill"])
def test_hard_terms_ignore_rows_that_are_not_observed(strategy: str | None) -> None:
    batch, model, made = make_batch(20), Heads(), objective(strategy, (ByPropensity(),))
    observed = torch.arange(20) % 4 != 0

    def hard(label: float) -> tuple[Tensor, list[Tensor | None]]:
        labels = {"click": torch.where(observed, batch.labels["click"], label)}
        changed = replace(batch, labels=labels, observed={"click": observed})
        terms = made.terms(model(changed), changed)
        value = torch.stack([term for name, term in terms.items() if name.endswith("/hard")]).sum(0)
        return value, gradients(value.sum(), model)

    value, gradient = hard(math.nan)
    assert torch.equal(value == 0, ~observed)
    other, other_gradient = hard(1.0)
    assert torch.equal(value, other)
    for one, two in zip(gradient, other_gradient, strict=True):
        assert (one is None and two is None) or torch.equal(one, two)  # type: ignore[arg-type]  # both are tensors then


def test_single_trains_the_served_head_on_soft_labels() -> None:
    batch, model = make_batch(20), Heads()
    made = objective("single", alpha=2.0)
    assert made.auxiliary == ()
    terms = made.terms(model(batch), batch)
    assert list(terms) == ["main/hard", "main/soft"]
    assert all(gradient is not None and gradient.any() for gradient in gradients(terms["main/soft"].sum(), model.main))
    assert gradients(terms["main/soft"].sum(), model.auxiliary) == [None, None]


@pytest.mark.parametrize("mode", ["downsampled", "fake_negative"])
def test_cross_debias_sends_teacher_and_student_through_one_correction(mode: str) -> None:
    batch = make_batch(20)
    sampling = component("debiaser", "sampling", mode=mode)
    student = torch.linspace(-3, 1, 20, requires_grad=True)
    equal = signal(batch, student.detach())
    soft = objective("single", (sampling,)).terms({"main": student}, equal)["main/soft"]
    (gradient,) = torch.autograd.grad(soft.sum(), student)
    assert torch.allclose(gradient, torch.zeros(20), atol=1e-6)  # equal raw logits are at the minimum
    teacher = torch.linspace(1, -2, 20)
    soft = objective("single", (sampling,)).terms({"main": student}, signal(batch, teacher))["main/soft"]
    corrected = [sampling.correct(logit, batch, "click") for logit in (student, teacher)]
    wanted = functional.binary_cross_entropy_with_logits(corrected[0], torch.sigmoid(corrected[1]), reduction="none")
    torch.testing.assert_close(soft, wanted)
    plain = objective("single").terms({"main": student}, signal(batch, teacher))
    assert not torch.allclose(soft, plain["main/soft"])
    hard = objective("single", (sampling,)).terms({"main": student}, signal(batch, teacher))["main/hard"]
    assert torch.equal(hard, plain["main/hard"])  # labels are learnt as they were logged


def test_the_teacher_gets_no_gradient_even_through_a_learnt_correction() -> None:
    batch = make_batch(20)
    teacher = torch.zeros(20, requires_grad=True)
    given = batch.with_teacher(TeacherSignal({"click": teacher}, {"click": torch.ones(20, dtype=torch.bool)}, "v"))
    student = torch.ones(20, requires_grad=True)
    soft = objective("single", (component("debiaser", "pal"),)).terms({"main": student}, given)["main/soft"]
    assert torch.autograd.grad(soft.sum(), [teacher], allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(soft.sum(), student)[0].any()


def test_weights_multiply_and_offsets_apply_in_training_only() -> None:
    batch, model = make_batch(20), Heads()
    assert batch.propensity is not None
    assert batch.position is not None
    once = objective("single", (ByPropensity(),)).terms(model(batch), batch)
    twice = objective("single", (ByPropensity(), ByPropensity())).terms(model(batch), batch)
    torch.testing.assert_close(once["main/soft"] / batch.propensity, twice["main/soft"])
    logit = model(batch)["main"] - 0.1 * batch.position
    wanted = functional.binary_cross_entropy_with_logits(logit, batch.labels["click"], reduction="none")
    torch.testing.assert_close(once["main/hard"], wanted * batch.observed["click"] / batch.propensity)


def test_a_strategy_and_a_loss_go_together() -> None:
    for arguments in ({"strategy": component("strategy", "single")}, {"loss": component("loss", "kl")}):
        with pytest.raises(ValueError, match="a strategy and a distillation loss go together: give both or neither"):
            Objective("click", **arguments)


@pytest.mark.parametrize("name", ["single", "rec_distill"])
@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf])
def test_alpha_is_finite_and_not_negative(name: str, alpha: float) -> None:
    with pytest.raises(ConfigError, match=f"strategy: alpha must be finite and >= 0, got {alpha}"):
        component("strategy", name, alpha=alpha)


@pytest.mark.parametrize("name", ["mlp", "dcn"])
def test_raw_and_distilled_students_of_one_seed_start_equal(name: str) -> None:
    def start(strategy: str | None) -> dict[str, Tensor]:
        torch.manual_seed(5)
        student: Student = component("student", name)
        return StudentModule(student, {"click": objective(strategy)}).state_dict()

    raw, distilled = start(None), start("rec_distill")
    assert any(key.startswith("auxiliary.") for key in distilled)
    assert raw.keys() == {key for key in distilled if not key.startswith("auxiliary.")}
    for key, value in raw.items():
        assert torch.equal(value, distilled[key]), key


def test_labels_without_the_students_task_are_refused() -> None:
    batch = make_batch()
    zeros = torch.zeros(len(batch))
    signal = TeacherSignal({"like": zeros}, {"like": zeros.bool()}, version="v1")
    objective = Objective("click", component("strategy", "single"), component("loss", "soft_ce"))
    with pytest.raises(DataError) as caught:
        objective.terms({"main": zeros}, batch.with_teacher(signal))
    assert str(caught.value) == (
        "the teacher's labels lack task 'click'\n"
        "  where: teacher version v1, tasks like\n"
        "  to do: train the teacher on that task too, or leave the task out of the student's"
    )
