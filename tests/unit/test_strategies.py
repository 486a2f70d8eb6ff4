"""Head strategies beyond the two basic ones: what each term is, and where its gradient goes."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from core_cases import component, make_batch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from recdistill_core import Batch, HeadStrategy, TeacherSignal
from recdistill_core.errors import DataError
from recdistill_core.label_choice import mean_labels
from recdistill_core.labels import LabelChoice, LabelPolicy
from recdistill_core.objective import Objective
from recdistill_core.schedule import RampConfig
from recdistill_core.strategy import Ramp, scale_gradient
from recdistill_lightning import Optimisation
from recdistill_strategies.confidence import RunningCalibration, confidence
from recdistill_strategies.exfm import StudentAdapter, scaled_labels
from recdistill_strategies.teachers import MultiTeacher

ROWS = 40


def made(name: str, **values: Any) -> Objective:
    return Objective("click", component("strategy", name, **values), component("loss", "soft_ce"))


def taught(logit: Tensor, valid: Tensor | None = None) -> Batch:
    there = torch.ones(len(logit), dtype=torch.bool) if valid is None else valid
    return make_batch(len(logit)).with_teacher(TeacherSignal({"click": logit}, {"click": there}, "v"))


class Model(nn.Module):
    """A backbone with a tower for each head of an objective."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(2, 4)
        self.towers = nn.ModuleDict({name: nn.Linear(4, 1) for name in ("main", *objective.auxiliary)})
        self.objective = objective

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        features = self.shared(batch.numeric).tanh()
        heads = {name: tower(self.objective.features(name, features))[:, 0] for name, tower in self.towers.items()}
        return self.objective.terms(heads, batch)


def slopes(value: Tensor, part: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(value, list(part.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros(1) if slope is None else slope for slope in found]


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


# ---------------------------------------------------------------------------------------------------- several teachers


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
    assert "labels.policy 'all_of'" in str(caught.value)


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


# ----------------------------------------------------------------------------------------- schedules and confidence


@pytest.mark.parametrize(("shape", "half"), [("linear", 0.5), ("cosine", 0.5)])
def test_a_ramp_goes_where_it_says_and_stays(shape: str, half: float) -> None:
    ramp = Ramp(1.0, RampConfig(to=0.0, steps=4, shape=shape))
    seen = []
    for _ in range(6):
        seen.append(ramp.value())
        ramp.advance()
    assert seen[0] == 1.0
    assert seen[2] == pytest.approx(half)
    assert seen[4] == seen[5] == 0.0
    assert (seen[1] == pytest.approx(0.75)) == (shape == "linear")


def test_a_restored_ramp_goes_on_and_a_constant_keeps_no_state() -> None:
    ramp, again = (Ramp(1.0, RampConfig(to=3.0, steps=10)) for _ in range(2))
    for _ in range(5):
        ramp.advance()
    again.load_state_dict(ramp.state_dict())
    assert again.value() == ramp.value() == 2.0
    constant = Ramp(2.5)
    constant.advance()
    assert constant.value() == 2.5
    assert not constant.state_dict()


def test_alpha_follows_its_ramp() -> None:
    objective = made("rec_distill", alpha=2.0, ramp={"to": 0.0, "steps": 2})
    model, batch = Model(objective), taught(torch.linspace(-3, 3, ROWS))
    first = model.terms(batch)["auxiliary/soft"]
    for part in objective.modules():
        if isinstance(part, Ramp):
            part.advance()
    torch.testing.assert_close(model.terms(batch)["auxiliary/soft"], first / 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"to": math.nan, "steps": 1}, "to must be finite, got nan"),
        ({"to": 1.0, "steps": 0}, "steps must be >= 1, got 0"),
        ({"to": 1.0, "steps": 1, "shape": "steep"}, "shape must be one of linear, cosine, got 'steep'"),
    ],
)
def test_a_ramp_that_leads_nowhere_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RampConfig(**values)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("single", {"confidence": "blind"}, "confidence must be one of none, entropy, calibration, got 'blind'"),
        ("single", {"ramp": {"to": -1.0, "steps": 3}}, "ramp.to must be >= 0 for alpha, got -1.0"),
        ("exfm_aux", {"label_scale": 0.0}, "label_scale must be finite and > 0, got 0.0"),
        ("exfm_aux", {"gradient_scale": -1.0}, "gradient_scale must be finite and >= 0, got -1.0"),
        ("student_adapter", {"beta": -1.0}, "beta must be finite and >= 0, got -1.0"),
        ("student_adapter", {"hidden": 0}, "hidden must be >= 1, got 0"),
        ("student_adapter", {"lr": 0.0}, "lr must be finite and > 0, got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        component("strategy", name, **values)


def weights_of(name: str, teacher: Tensor) -> Tensor:
    module = confidence(name)
    assert module is not None
    there = torch.ones(len(teacher), dtype=torch.bool)
    weight: Tensor = module(teacher, there, torch.zeros(len(teacher)), there)
    return weight


def test_a_certain_teacher_counts_more() -> None:
    weight = weights_of("entropy", torch.tensor([0.0, 2.0, -2.0, 30.0, -30.0]))
    p = torch.sigmoid(torch.tensor(2.0))
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    wanted = float(1 - entropy / math.log(2))
    torch.testing.assert_close(weight, torch.tensor([0.0, wanted, wanted, 1.0, 1.0]))


def test_a_teacher_that_says_twice_too_much_counts_half() -> None:
    torch.manual_seed(0)
    calibration = RunningCalibration()
    teacher = torch.full((40_000,), math.log(0.4 / 0.6))
    label = (torch.rand(40_000) < 0.2).float()
    there = torch.ones(40_000, dtype=torch.bool)
    assert torch.allclose(calibration(teacher, there, label, there), torch.ones(40_000))  # nothing is known as yet
    assert calibration(teacher, there, label, there).mean() == pytest.approx(0.5, abs=0.02)
    calibration.eval()
    before = calibration.rows.clone()
    calibration(teacher, there, label, there)
    assert torch.equal(calibration.rows, before)


def test_labels_of_a_batch_move_no_weight_of_the_same_batch() -> None:
    teacher = torch.linspace(-4, 4, ROWS)
    there = torch.ones(ROWS, dtype=torch.bool)
    found = []
    for label in (torch.zeros(ROWS), torch.ones(ROWS)):
        torch.manual_seed(1)
        calibration = RunningCalibration()
        calibration(teacher, there, (torch.arange(ROWS) % 3 == 0).float(), there)
        found.append(calibration(teacher, there, label, there))
    assert torch.equal(*found)


def test_rows_that_are_not_observed_or_not_labelled_are_not_counted() -> None:
    calibration = RunningCalibration()
    valid, observed = torch.arange(ROWS) % 2 == 0, torch.arange(ROWS) % 3 == 0
    calibration(torch.zeros(ROWS), valid, torch.ones(ROWS), observed)
    assert int(calibration.rows.sum()) == int(calibration.positives.sum()) == int((valid & observed).sum())


@pytest.mark.parametrize("name", ["single", "rec_distill", "exfm_aux", "student_adapter"])
@pytest.mark.parametrize("trust", ["entropy", "calibration"])
def test_confidence_weighs_the_soft_loss_alone(name: str, trust: str) -> None:
    batch = taught(torch.linspace(-3, 3, ROWS))
    plain, weighed = Model(made(name)), Model(made(name, confidence=trust))
    for _ in range(2):
        one, other = plain.terms(batch), weighed.terms(batch)
    soft = next(term for term in one if term.endswith("/soft"))
    assert not torch.equal(one[soft], other[soft])
    for term in one:
        if term != soft:
            assert torch.equal(one[term], other[term])


def test_a_strategy_that_feeds_another_width_is_told() -> None:
    class Half(HeadStrategy):
        def features(self, head: str, features: Tensor) -> Tensor:
            return features[:, :1]

    objective = Objective("click", Half(), component("loss", "soft_ce"))
    with pytest.raises(Exception, match=r"Half feeds tower 'main' features of shape \[3, 1\], not \[3, 2\]"):
        objective.features("main", torch.zeros(3, 2))
