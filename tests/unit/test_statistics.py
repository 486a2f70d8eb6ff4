"""Intervals of eta: coverage against a known truth, pairing, determinism, and where there is no interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from recdistill_core.errors import UsageError
from recdistill_metrics.ranking import Auc
from recdistill_pipeline.statistics import NO_GAIN, UNDEFINED_METRIC, WITHIN_NOISE, Eta, fieller, transferability

Models = list[np.ndarray]


class MeanLoss:
    """The mean of what it is given as logits, a metric whose truth is known; NaN where no user has weight."""

    def __init__(self, higher_is_better: bool = False) -> None:
        self.higher_is_better = higher_is_better

    def prepare(self, logit: np.ndarray, label: np.ndarray, user: np.ndarray) -> Callable[[np.ndarray], float]:
        total, rows = np.bincount(user, weights=logit), np.bincount(user).astype(np.float64)
        return lambda weights: float(weights @ total / (weights @ rows)) if weights @ rows > 0 else math.nan


class NotTheFirstUser(MeanLoss):
    """Undefined unless user 0 is drawn."""

    def prepare(self, logit: np.ndarray, label: np.ndarray, user: np.ndarray) -> Callable[[np.ndarray], float]:
        mean = super().prepare(logit, label, user)
        return lambda weights: mean(weights) if weights[0] > 0 else math.nan


def experiment(
    rng: np.random.Generator, *, seeds: int, eta: float, gain: float = 0.1, own: float = 0.05, between_seeds: float = 0
) -> tuple[np.ndarray, Models, Models, Models]:
    """Losses of three sides over 400 users with 3 rows each; the noise of users is shared by all models."""
    user = np.repeat(np.arange(400), 3)
    shared = rng.normal(1, 1, 400)

    def model(mean: float) -> np.ndarray:
        offset = mean + rng.normal(0, between_seeds) if between_seeds else mean
        return (shared + offset + rng.normal(0, own, 400))[user]

    return user, *([model(mean) for _ in range(seeds)] for mean in (0.0, -gain, -gain * eta))


def run(models: tuple[np.ndarray, Models, Models, Models], metric: MeanLoss | None = None, **options: object) -> Eta:
    user, raw, teacher, distilled = models
    options = {"resamples": 200, "seed": 0} | options
    return transferability(metric or MeanLoss(), np.zeros(len(user)), user, raw, teacher, distilled, **options)


@pytest.mark.parametrize(("seeds", "between", "own"), [(1, 0.0, 0.15), (5, 0.01, 0.05)])
def test_coverage_of_the_95_percent_interval(seeds: int, between: float, own: float) -> None:
    rng = np.random.default_rng(seeds)
    covered = crossed = bounded = 0
    for at in range(200):
        result = run(experiment(rng, seeds=seeds, eta=0.6, own=own, between_seeds=between), seed=at)
        if result.low is None or result.fieller is None:
            continue
        bounded += 1
        covered += result.low <= 0.6 <= result.high
        crossed += result.fieller[0] <= 0.6 <= result.fieller[1]
    assert bounded > 190
    assert 0.90 < covered / bounded < 0.99
    assert 0.90 < crossed / bounded < 0.99


def test_values_and_signs_of_a_loss() -> None:
    result = run(experiment(np.random.default_rng(0), seeds=2, eta=0.6, own=0.01))
    assert result.value == pytest.approx(0.6, abs=0.02)
    assert result.gain.value == pytest.approx(0.1, abs=0.002)
    assert result.gain_distill.value == pytest.approx(0.06, abs=0.002)
    assert result.raw.value - result.teacher.value == pytest.approx(result.gain.value)
    for interval in (result.gain, result.gain_distill, result.raw, result.teacher, result.distilled):
        assert interval.low < interval.value < interval.high
    assert (result.users, result.seeds, result.note, result.undefined_resamples) == (400, 2, "", 0)


def test_pairing_makes_eta_far_sharper_than_its_parts() -> None:
    result = run(experiment(np.random.default_rng(0), seeds=1, eta=0.6, own=0.01))
    assert result.raw.high - result.raw.low > 0.1  # the spread of users hides a gain of 0.1 ...
    assert result.gain.high - result.gain.low < 0.005  # ... but all models meet the same users


def test_direction_of_the_metric() -> None:
    user, raw, teacher, distilled = experiment(np.random.default_rng(0), seeds=1, eta=0.6)
    assert run((user, raw, teacher, distilled), MeanLoss(higher_is_better=True)).note == NO_GAIN
    negated = (user, *([-one for one in side] for side in (raw, teacher, distilled)))
    assert run(negated, MeanLoss(higher_is_better=True)).value == run((user, raw, teacher, distilled)).value


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_student_equal_to_the_teacher_has_eta_exactly_1(seeds: int) -> None:
    user, raw, teacher, _ = experiment(np.random.default_rng(0), seeds=seeds, eta=0.6, between_seeds=0.01)
    result = run((user, raw, teacher, teacher))
    assert (result.value, result.low, result.high) == (1.0, 1.0, 1.0)
    assert result.fieller == pytest.approx((1.0, 1.0))


def test_equal_seeds_give_equal_results() -> None:
    models = experiment(np.random.default_rng(0), seeds=3, eta=0.6, own=0.1)
    assert run(models, seed=1) == run(models, seed=1)
    assert run(models, seed=1) != run(models, seed=2)


def test_user_ids_may_be_any_integers() -> None:
    user, raw, teacher, distilled = experiment(np.random.default_rng(0), seeds=1, eta=0.6)
    assert run((user * 10**10 - 5, raw, teacher, distilled)) == run((user, raw, teacher, distilled))


def test_a_single_teacher_serves_all_seeds() -> None:
    user, raw, teacher, distilled = experiment(np.random.default_rng(0), seeds=3, eta=0.6)
    assert run((user, raw, teacher[:1], distilled)) == run((user, raw, teacher[:1] * 3, distilled))


def test_resampling_seeds_widens_the_interval() -> None:
    models = experiment(np.random.default_rng(0), seeds=5, eta=0.6, own=0.01, between_seeds=0.01)
    narrow, wide = run(models, over_seeds=False), run(models)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert narrow.value == wide.value


def test_no_teacher_gain_leaves_eta_undefined() -> None:
    result = run(experiment(np.random.default_rng(0), seeds=1, eta=0.6, gain=-0.1))
    assert (result.value, result.low, result.high, result.fieller) == (None, None, None, None)
    assert result.note == NO_GAIN == "undefined: teacher gain <= 0"
    assert result.gain.value < 0


def test_a_gain_within_noise_has_no_bounds() -> None:
    result = run(experiment(np.random.default_rng(3), seeds=1, eta=0.6, gain=0.01, own=0.3))
    assert result.value is not None
    assert (result.low, result.high, result.fieller) == (None, None, None)
    assert result.note == WITHIN_NOISE == "interval unbounded: the teacher's gain is within noise"


def test_an_undefined_metric_is_said_to_be_undefined() -> None:
    user = np.zeros(4, dtype=np.int64)
    models = [np.arange(4.0)]
    result = transferability(Auc(), np.ones(4), user, models, models, models, seed=0, resamples=100)
    assert (result.value, result.raw.value) == (None, None)
    assert result.note.startswith(UNDEFINED_METRIC)
    assert result.note.endswith("undefined in 100 of 100 resamples, which are left out")


def test_undefined_resamples_are_left_out_and_counted() -> None:
    result = run(experiment(np.random.default_rng(0), seeds=1, eta=0.6), NotTheFirstUser())
    assert 40 < result.undefined_resamples < 110  # a user is not drawn with probability 1/e
    assert (
        result.note == f"the metric was undefined in {result.undefined_resamples} of 200 resamples, which are left out"
    )
    assert result.low < result.value < result.high


def test_auc_of_real_logits() -> None:
    rng = np.random.default_rng(0)
    truth, user = rng.normal(-1, 1.5, 4000), rng.integers(300, size=4000)
    label = (rng.random(4000) < 1 / (1 + np.exp(-truth))).astype(np.float64)
    raw, teacher, distilled = (truth + rng.normal(0, noise, 4000) for noise in (1.5, 0.3, 0.7))
    result = transferability(Auc(), label, user, [raw], [teacher], [distilled], seed=0, resamples=200)
    assert 0 < result.low < result.value < result.high < 1
    assert result.fieller == pytest.approx((result.low, result.high), abs=0.05)


def test_progress_is_reported() -> None:
    seen: list[tuple[int, int]] = []
    run(experiment(np.random.default_rng(0), seeds=1, eta=0.6), progress=lambda *done: seen.append(done), resamples=120)
    assert seen == [(50, 120), (100, 120), (120, 120)]


def test_fieller_by_hand() -> None:
    # den known exactly: an ordinary interval, num / den +- 1.96 * sd / den
    assert fieller(6.0, 10.0, np.diag([4.0, 0.0])) == pytest.approx((0.6 - 0.391993, 0.6 + 0.391993), abs=1e-5)
    assert fieller(0.6, 1.0, np.diag([0.01, 0.3])) is None
    low, high = fieller(0.6, 1.0, np.diag([0.01, 0.01]), confidence=0.9)
    for bound in (low, high):
        assert (0.6 - bound) ** 2 == pytest.approx(1.6448536**2 * 0.01 * (1 + bound**2))


def test_wrong_arguments_are_refused() -> None:
    user, raw, teacher, distilled = experiment(np.random.default_rng(0), seeds=3, eta=0.6)
    with pytest.raises(UsageError, match="different numbers of seeds: 3 raw, 2 teacher, 3 distilled"):
        run((user, raw, teacher[:2], distilled))
    with pytest.raises(UsageError, match="different numbers of seeds: 0 raw"):
        run((user, [], [], []))
    with pytest.raises(UsageError, match=r"logits have shape \[7\], labels \[1200\]") as caught:
        run((user, raw, teacher, [*distilled[:2], distilled[2][:7]]))
    assert caught.value.where == "transferability, distilled seed 2"
    assert caught.value.fix == "score the same evaluation rows with every model"
    with pytest.raises(UsageError, match="resamples must be at least 100, got 10"):
        run((user, raw, teacher, distilled), resamples=10)
    with pytest.raises(UsageError, match=r"confidence must lie in \(0.5, 1\), got 95"):
        run((user, raw, teacher, distilled), confidence=95)


def test_the_result_is_plain_data() -> None:
    plain = dataclasses.asdict(run(experiment(np.random.default_rng(0), seeds=1, eta=0.6)))
    assert {type(plain[key]) for key in ("value", "low", "high")} == {float}
    assert {type(value) for value in plain["gain"].values()} == {float}
