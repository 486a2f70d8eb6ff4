"""Inverse propensity weights against simulated logs whose truth is known."""

from __future__ import annotations

import logging
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

import recdistill_ipw
from recdistill_core import Batch, BuildContext
from recdistill_core.errors import DataError, UsageError
from recdistill_ipw.debias import Ipw


def build(tasks: tuple[str, ...] = ("click",), **values: object) -> Ipw:
    (component,) = recdistill_ipw.recdistill_debiasers()
    assert component.needs_of(component.config()) == {"propensity"}
    made = component.build(component.config(**values), BuildContext(tasks=tasks))
    assert isinstance(made, Ipw)
    return made


def batch(propensity: Tensor | list[float] | None, observed: list[bool] | None = None) -> Batch:
    propensity = torch.tensor(propensity) if isinstance(propensity, list) else propensity
    zero = torch.arange(3 if propensity is None else len(propensity))
    seen = torch.ones(len(zero), dtype=torch.bool) if observed is None else torch.tensor(observed)
    labels = {"click": torch.zeros(len(zero))}
    numeric = torch.zeros(len(zero), 0)
    return Batch(zero, zero, zero, zero, zero, zero[:, None], numeric, labels, {"click": seen}, propensity=propensity)


def shown(rng: np.random.Generator, items: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Propensity and loss of the rows that were shown; what was shown more is lost less; and the truth over all."""
    propensity = np.exp(rng.uniform(math.log(0.02), 0, items))
    loss = 2.0 - propensity + rng.exponential(0.5, items)
    was = rng.random(items) < propensity
    return propensity[was], loss[was], float(loss.mean())


def estimates(clip: float, snips: bool, repeats: int = 200, items: int = 4000) -> np.ndarray:
    """``[repeats]`` errors of the estimate of the mean loss, from what was shown alone."""
    rng, errors = np.random.default_rng(0), []
    for _ in range(repeats):
        propensity, loss, truth = shown(rng, items)
        rows, debiaser = batch(torch.tensor(propensity, dtype=torch.float32)), build(clip=clip, snips=snips)
        debiaser.fit([rows], "click")
        total = float((debiaser.weight(rows, "click").double() * torch.tensor(loss)).sum())
        errors.append(total / (len(loss) if snips else items) - truth)
    return np.array(errors)


def z_score(errors: np.ndarray) -> float:
    return float(errors.mean() / (errors.std(ddof=1) / math.sqrt(len(errors))))


def test_the_weighted_mean_is_unbiased_without_clipping() -> None:
    assert abs(z_score(estimates(clip=1e-6, snips=False))) < 3


def test_snips_is_consistent_and_steadier() -> None:
    plain, snips = estimates(clip=1e-6, snips=False), estimates(clip=1e-6, snips=True)
    assert abs(snips.mean()) < 0.01 * 2.0  # its bias falls with 1 / items
    assert snips.std() < 0.5 * plain.std()


def test_ignoring_propensities_is_biased() -> None:
    rng, errors = np.random.default_rng(0), []
    for _ in range(100):
        _, loss, truth = shown(rng, 4000)
        errors.append(loss.mean() - truth)
    assert z_score(np.array(errors)) < -10


def test_clipping_underestimates() -> None:
    bias = [estimates(clip=clip, snips=False).mean() for clip in (0.05, 0.2)]
    assert 0 > bias[0] > bias[1]
    assert z_score(estimates(clip=0.05, snips=False)) < -5


def test_weights_are_inverse_and_clipped() -> None:
    weight = build(clip=0.1, snips=False).weight(batch([0.01, 0.1, 0.5, 1.0]), "click")
    assert weight.tolist() == pytest.approx([10, 10, 2, 1])


def test_snips_equals_its_formula_over_the_data_whatever_the_batches() -> None:
    torch.manual_seed(0)
    propensity, loss = torch.rand(1000) * 0.9 + 0.1, torch.rand(1000)
    seen = torch.rand(1000) < 0.7
    parts = [batch(propensity[at : at + 130], seen[at : at + 130].tolist()) for at in range(0, 1000, 130)]
    debiaser = build(clip=0.2)
    debiaser.fit(parts, "click")
    weight = torch.cat([debiaser.weight(part, "click") for part in parts])[seen]
    plain = 1 / propensity[seen].clamp(min=0.2)
    expected = (plain * loss[seen]).sum() / plain.sum()
    assert float((weight * loss[seen]).mean()) == pytest.approx(float(expected), rel=1e-5)
    assert float(weight.mean()) == pytest.approx(1.0, rel=1e-5)


def test_fitting_twice_is_fitting_once() -> None:
    debiaser = build()
    for _ in range(2):
        debiaser.fit([batch([0.5, 1.0])], "click")
    assert debiaser.report()["click"]["rows"] == 2


def test_report_has_the_effective_sample_size() -> None:
    debiaser = build(clip=0.25)
    debiaser.fit([batch([0.1, 1.0]), batch([0.5])], "click")
    assert debiaser.report()["click"] == pytest.approx(
        {
            "rows": 3,
            "mean_weight": 7 / 3,
            "effective_sample_size": 49 / 21,
            "effective_share": 49 / 63,
            "clipped_share": 1 / 3,
        }
    )
    assert build().report() == {}


def test_a_small_effective_sample_size_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    rows = batch([1e-3] + [1.0] * 999)
    with caplog.at_level(logging.WARNING):
        build(clip=1e-3, min_effective_share=0.004).fit([rows], "click")
    assert caplog.messages[0].startswith("ipw: task 'click' has an effective sample size of 0.4% of its 1000 rows")
    assert "raise clip (now 0.001)" in caplog.messages[0]
    caplog.clear()
    build(clip=0.1).fit([rows], "click")
    assert caplog.messages == []


def test_state_survives_a_round_trip() -> None:
    fitted, restored = build(), build()
    fitted.fit([batch([0.1, 0.7])], "click")
    restored.load_state_dict(fitted.state_dict())
    assert torch.equal(restored.weight(batch([0.3]), "click"), fitted.weight(batch([0.3]), "click"))


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_impossible_propensities_are_refused(bad: float) -> None:
    for use in (lambda rows: build(snips=False).weight(rows, "click"), lambda rows: build().fit([rows], "click")):
        with pytest.raises(DataError, match=r"propensity .* is outside \(0, 1\]") as caught:
            use(batch([0.5, bad]))
        assert caught.value.where == "debiaser 'ipw', row 1 of a batch, example 1"
        assert "could not have been shown" in caught.value.fix


def test_what_is_missing_is_named() -> None:
    with pytest.raises(DataError, match="the batch has no propensities") as missing:
        build(snips=False).weight(batch(None), "click")
    assert "propensity column" in missing.value.fix
    with pytest.raises(
        UsageError, match="mean weight of the training rows of task 'click', which is not known"
    ) as early:
        build().weight(batch([0.5]), "click")
    assert "set snips: false" in early.value.fix
    with pytest.raises(UsageError, match="was not built for task 'buy'") as unknown:
        build().fit([batch([0.5])], "buy")
    assert unknown.value.where == "its tasks: click"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clip": 0.0}, r"clip must lie in \(0, 1\], got 0.0"),
        ({"clip": 1.1}, r"clip must lie in \(0, 1\], got 1.1"),
        ({"min_effective_share": -0.1}, r"min_effective_share must lie in \[0, 1\], got -0.1"),
    ],
)
def test_ranges(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recdistill_ipw.IpwConfig(**values)


def test_hook_module_imports_no_torch() -> None:
    code = "import sys, recdistill_ipw as m; m.recdistill_debiasers(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
