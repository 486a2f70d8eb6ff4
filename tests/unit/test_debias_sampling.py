"""Sampling corrections against simulated impressions whose true rate is known."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

import recdistill_sampling
from recdistill_core import Batch, BuildContext, Debiaser, Schema
from recdistill_core.errors import DataError, WiringError
from recdistill_core.schema import KeepRates
from recdistill_sampling import SamplingConfig

RATE, KEEP_POSITIVE, KEEP_NEGATIVE = 0.0299, 0.8, 0.1


def build(schema: Schema | None = None, tasks: tuple[str, ...] = (), **values: object) -> Debiaser:
    (component,) = recdistill_sampling.recdistill_debiasers()
    return component.build(component.config(**values), BuildContext(schema, tasks))


def batch(rows: int, keep_rates: dict[str, tuple[float, float]] | None = None) -> Batch:
    zero = torch.zeros(rows, dtype=torch.int64)
    return Batch(zero, zero, zero, zero, zero, zero[:, None], torch.zeros(rows, 0), keep_rates=keep_rates)


def correct(debiaser: Debiaser, logit: Tensor, rates: tuple[float, float] = (KEEP_POSITIVE, KEEP_NEGATIVE)) -> Tensor:
    return debiaser.correct(logit, batch(len(logit), {"click": rates}), "click")


def sampled(click: np.ndarray, rng: np.random.Generator, fake_negative: bool) -> tuple[np.ndarray, np.ndarray]:
    """Index of the impression and label of each row that survives."""
    positive = np.flatnonzero(click)
    negative = np.arange(len(click)) if fake_negative else np.flatnonzero(~click)
    positive = positive[rng.random(len(positive)) < KEEP_POSITIVE]
    negative = negative[rng.random(len(negative)) < KEEP_NEGATIVE]
    return np.r_[positive, negative], np.r_[np.ones(len(positive)), np.zeros(len(negative))]


@pytest.mark.parametrize("mode", ["downsampled", "fake_negative"])
def test_recovers_the_true_rate_from_4_million_impressions(mode: str) -> None:
    rng = np.random.default_rng(0)
    _, label = sampled(rng.random(4_000_000) < RATE, rng, mode == "fake_negative")
    positive, negative = label.sum(), (1 - label).sum()
    logit = torch.tensor([math.log(positive / negative)], dtype=torch.float64)
    corrected = float(torch.sigmoid(correct(build(mode=mode), logit)))
    # the standard error of the observed log odds is sqrt(1/n+ + 1/n-), and d p / d logit <= p
    assert abs(corrected - RATE) / (RATE * math.sqrt(1 / positive + 1 / negative)) < 3
    if mode == "downsampled":  # the paper's symbols read as retention probabilities: k+ / k- where k- / k+ belongs
        wrong = float(torch.sigmoid(logit + math.log(KEEP_POSITIVE / KEEP_NEGATIVE)))
        assert wrong == pytest.approx(0.663, abs=0.003)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["downsampled", "fake_negative"])
def test_a_model_fitted_on_the_sample_is_calibrated_for_each_kind_of_impression(mode: str) -> None:
    rng = np.random.default_rng(1)
    feature = rng.integers(4, size=1_000_000)
    truth = expit(np.array([-4.5, -3.5, -2.5, -1.5])[feature])
    click = rng.random(len(feature)) < truth
    kept, label = sampled(click, rng, mode == "fake_negative")
    design = np.eye(4)[feature[kept]]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logit = design @ weights
        return float(np.logaddexp(0, logit).sum() - label @ logit), design.T @ (expit(logit) - label)

    fitted = minimize(loss, np.zeros(4), jac=True).x
    corrected = torch.sigmoid(correct(build(mode=mode), torch.tensor(fitted))).numpy()
    for kind in range(4):
        rows, clicks = (feature == kind).sum(), click[feature == kind].sum()
        kept_clicks = (label[feature[kept] == kind] == 1).sum()
        kept_other = (label[feature[kept] == kind] == 0).sum()
        error = corrected[kind] * math.sqrt(1 / kept_clicks + 1 / kept_other)
        assert abs(corrected[kind] - truth[feature == kind][0]) < 3.5 * error
        assert corrected[kind] == pytest.approx(clicks / rows, abs=4 * error)


def test_equal_rates_change_nothing() -> None:
    logit = torch.linspace(-20, 20, 9)
    assert torch.equal(correct(build(), logit, (1.0, 1.0)), logit)
    assert torch.equal(correct(build(), logit, (0.3, 0.3)), logit)
    assert build().weight(batch(2), "click").tolist() == [1.0, 1.0]
    assert torch.equal(build().training_logit(logit, batch(9), "click"), logit)


def test_configured_rates_override_those_of_the_data() -> None:
    debiaser = build(keep_positive={"click": 1.0}, keep_negative={"click": 0.5})
    assert float(correct(debiaser, torch.zeros(1))) == pytest.approx(math.log(0.5))


def test_cross_debias_sends_teacher_and_student_through_one_correction() -> None:
    """Equal raw logits stay equal: the correction itself adds no distance (Rec-Distill's T2' and S2)."""
    teacher = torch.randn(100)
    for mode in ("downsampled", "fake_negative"):
        assert torch.equal(correct(build(mode=mode), teacher), correct(build(mode=mode), teacher.clone()))


@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.8, 0.1), (0.1, 0.8)])
def test_fake_negative_equals_its_formula_inside_the_domain(rates: tuple[float, float]) -> None:
    top = math.log(rates[0] / rates[1])
    logit = torch.linspace(top - 30, top - 0.01, 500, dtype=torch.float64)
    naive = -torch.log(torch.exp(-logit) * rates[0] / rates[1] - 1)
    torch.testing.assert_close(correct(build(mode="fake_negative"), logit, rates), naive, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_fake_negative_is_finite_and_increasing_everywhere(dtype: torch.dtype) -> None:
    logit = torch.tensor([-1e4, -100, -20, -5, 0, 2, 2.0625, 2.125, 3, 20, 1e4], dtype=dtype, requires_grad=True)
    corrected = correct(build(mode="fake_negative"), logit)
    (gradient,) = torch.autograd.grad(corrected.sum(), logit)
    assert torch.isfinite(corrected).all()
    assert torch.isfinite(gradient).all()
    assert (corrected.diff() > 0).all()
    assert (gradient > 0).all()


def test_fake_negative_is_a_line_beyond_its_domain() -> None:
    debiaser = build(mode="fake_negative", max_logit=3.0)
    limit = math.log(expit(3.0)) + math.log(KEEP_POSITIVE / KEEP_NEGATIVE)
    logit = torch.tensor([limit, limit + 1, limit + 10], dtype=torch.float64, requires_grad=True)
    corrected = correct(debiaser, logit)
    assert corrected.tolist() == pytest.approx([3.0, 4.0, 13.0])
    (gradient,) = torch.autograd.grad(corrected.sum(), logit)
    assert gradient[1:].tolist() == [1.0, 1.0]


def test_fake_negative_gradient_is_right() -> None:
    logit = torch.tensor([-12.0, -3.0, 0.0, 1.3, 1.5, 2.0, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: correct(build(mode="fake_negative"), z), (logit,))


def test_unknown_rates_are_refused() -> None:
    with pytest.raises(DataError, match="the keep rates of task 'click' are not known") as caught:
        build().correct(torch.zeros(1), batch(1, {"buy": (1.0, 1.0)}), "click")
    assert "keep_positive and keep_negative" in caught.value.fix
    schema = Schema(tasks=("click", "buy"), vocabularies={"item_id": 2}, keep_rates={"click": KeepRates(1.0, 0.1)})
    build(schema, ("click",))
    with pytest.raises(WiringError, match="does not know the keep rates of task 'buy'") as wired:
        build(schema, ("click", "buy"))
    assert wired.value.where == "the dataset gives those of: click"
    assert "keep_positive: {buy: ...}" in wired.value.fix


def test_needs_follow_the_configuration() -> None:
    (component,) = recdistill_sampling.recdistill_debiasers()
    assert component.needs_of(SamplingConfig()) == {"keep_rates"}
    given = SamplingConfig(keep_positive={"click": 1.0}, keep_negative={"click": 0.1})
    assert component.needs_of(given) == frozenset()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep_positive": {"click": 0.0}}, r"keep_positive of task 'click' must lie in \(0, 1\], got 0.0"),
        ({"keep_negative": {"click": 1.5}}, r"keep_negative of task 'click' must lie in \(0, 1\], got 1.5"),
        ({"keep_positive": {"click": 0.5}}, "task 'click' needs both keep_positive and keep_negative"),
        ({"mode": "down"}, "mode must be one of downsampled, fake_negative, got 'down'"),
        ({"max_logit": 0.0}, r"max_logit must lie in \[1, 20\], got 0.0"),
    ],
)
def test_ranges(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**values)


def test_hook_module_imports_no_torch() -> None:
    code = "import sys, recdistill_sampling as m; m.recdistill_debiasers(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
