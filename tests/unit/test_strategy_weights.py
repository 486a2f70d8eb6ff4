"""Schedules, confidence and settings of head strategies."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from core_cases import component, make_batch
from strategy_cases import ROWS, Model, made, taught
from torch import Tensor

from recdistill_core import HeadStrategy
from recdistill_core.objective import Objective
from recdistill_core.schedule import RampConfig
from recdistill_core.strategy import Ramp
from recdistill_strategies.confidence import RunningCalibration, confidence


@pytest.mark.parametrize(("shape", "half"), [("linear", 0.5), ("cosine", 0.5)])
def test_a_ramp_goes_where_it_says_and_stays(shape: str, half: float) -> None:
    ramp = Ramp(1.0, RampConfig(to=0.0, steps=4, shape=shape))
    seen = []
    for _ in range(6):
        seen.append(ramp.value())
        ramp.advance(make_batch())
    assert seen[0] == 1.0
    assert seen[2] == pytest.approx(half)
    assert seen[4] == seen[5] == 0.0
    assert (seen[1] == pytest.approx(0.75)) == (shape == "linear")


def test_a_restored_ramp_goes_on_and_a_constant_keeps_no_state() -> None:
    ramp, again = (Ramp(1.0, RampConfig(to=3.0, steps=10)) for _ in range(2))
    for _ in range(5):
        ramp.advance(make_batch())
    again.load_state_dict(ramp.state_dict())
    assert again.value() == ramp.value() == 2.0
    constant = Ramp(2.5)
    constant.advance(make_batch())
    assert constant.value() == 2.5
    assert not constant.state_dict()


def test_alpha_follows_its_ramp() -> None:
    objective = made("rec_distill", alpha=2.0, ramp={"to": 0.0, "steps": 2})
    model, batch = Model(objective), taught(torch.linspace(-3, 3, ROWS))
    first = model.terms(batch)["auxiliary/soft"]
    for part in objective.modules():
        if isinstance(part, Ramp):
            part.advance(batch)
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
