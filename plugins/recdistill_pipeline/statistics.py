"""Transferability (eta) with intervals: how much of the teacher's gain the student kept.

``eta = (P_distilled - P_raw) / (P_teacher - P_raw)`` (Rec-Distill, arXiv 2605.29755), where ``P`` is one metric of the
student trained without distillation (raw), of the teacher and of the distilled student, on the same rows. The paper
gives no interval; these come from a paired bootstrap over users and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import UsageError
from recdistill_pipeline.statistics_bootstrap import SIDES, Draws, draw
from recdistill_pipeline.statistics_ratio import critical_value, fieller, quantiles, ratio_samples

if TYPE_CHECKING:
    from recdistill_core.interfaces import Metric

__all__ = ["Eta", "Interval", "fieller", "transferability"]

UNDEFINED_METRIC = "undefined: the metric is undefined on these rows"
NO_GAIN = "undefined: teacher gain <= 0"
WITHIN_NOISE = "interval unbounded: the teacher's gain is within noise"
#: Gains as combinations of :data:`SIDES`, up to the metric's sign.
GAIN = np.array([-1.0, 1.0, 0.0])
GAIN_DISTILL = np.array([-1.0, 0.0, 1.0])


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its percentile interval; None where undefined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Eta:
    """Transferability with intervals. Gains are signed so that more is better, whatever the metric's direction.

    Attributes:
        value, low, high: eta and its percentile interval, None where undefined; 1 = all of the teacher's gain kept.
        note: why a number is missing or uncertain, or empty.
        gain: the teacher's gain over the raw student.
        gain_distill: the distilled student's gain over the raw student.
        raw, teacher, distilled: each side's metric, averaged over seeds.
        fieller: Fieller's interval for eta from the covariance of the two gains, a cross-check; None if unbounded.
        confidence: of every interval.
        resamples: bootstrap resamples asked for.
        undefined_resamples: those in which the metric was undefined for some model; they are left out.
        users, seeds: how many there were.
    """

    value: float | None
    low: float | None
    high: float | None
    note: str
    gain: Interval
    gain_distill: Interval
    raw: Interval
    teacher: Interval
    distilled: Interval
    fieller: tuple[float, float] | None
    confidence: float
    resamples: int
    undefined_resamples: int
    users: int
    seeds: int


def transferability(
    metric: Metric,
    label: NDArray[np.float64],
    user: NDArray[np.int64],
    raw: Sequence[NDArray[np.float64]],
    teacher: Sequence[NDArray[np.float64]],
    distilled: Sequence[NDArray[np.float64]],
    *,
    seed: int,
    resamples: int = 1000,
    confidence: float = 0.95,
    over_seeds: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Eta:
    """Eta from seed means, with intervals from a paired bootstrap.

    Each resample draws users with replacement, the same for all models and seeds, and, with ``S > 1`` seeds, weights of
    the seeds, the same for the three sides. So noise that the models share cancels, as it does in eta. The weights of
    the seeds give their mean Student's distribution, since few seeds say little about the spread of seeds; what users
    and seeds have in common is counted once (docs/decisions/seeds-by-student.md).

    Args:
        metric: a metric whose ``higher_is_better`` is meaningful.
        label: ``[N]`` of 0 and 1.
        user: ``[N]`` int64 ids, any values.
        raw, distilled: one array ``[N]`` of logits per seed, in the same order of seeds.
        teacher: likewise; a single array stands for all seeds.
        seed: of the bootstrap; equal seeds give equal results.
        resamples: number of bootstrap resamples, at least 100.
        confidence: of every interval, in (0.5, 1).
        over_seeds: whether to resample seeds too; False answers for these trained models alone.
        progress: called with (resamples done, resamples) now and then.

    Raises:
        UsageError: if arguments are out of range or the sides do not match.
        DataError: from the metric, for non-finite logits and the like.
    """
    _check(label, user, {"raw": raw, "teacher": teacher, "distilled": distilled}, resamples, confidence)
    draws = draw(metric, label, user, (raw, teacher, distilled), resamples, seed, over_seeds, progress)
    return summarise(draws, 1.0 if metric.higher_is_better else -1.0, confidence)


def summarise(draws: Draws, sign: float, confidence: float) -> Eta:
    """Eta of ``draws`` of the three :data:`SIDES`; ``sign`` is 1 where higher is better, else -1."""
    sides = {name: _interval(draws, side, confidence) for name, side in zip(SIDES, np.eye(3), strict=True)}
    gain = _interval(draws, sign * GAIN, confidence)
    gain_distill = _interval(draws, sign * GAIN_DISTILL, confidence)
    value, low, high, note = _eta(draws, sign, gain, gain_distill, confidence)
    cross_check = None if value is None else _fieller(draws, sign, value, confidence)
    if draws.undefined:
        left_out = f"the metric was undefined in {draws.undefined} of {draws.resamples} resamples, which are left out"
        note = f"{note}; {left_out}" if note else left_out
    return Eta(
        value,
        low,
        high,
        note,
        gain,
        gain_distill,
        **sides,
        fieller=cross_check,
        confidence=confidence,
        resamples=draws.resamples,
        undefined_resamples=draws.undefined,
        users=draws.users,
        seeds=draws.seeds,
    )


def _eta(
    draws: Draws, sign: float, gain: Interval, gain_distill: Interval, confidence: float
) -> tuple[float | None, float | None, float | None, str]:
    """Value, low, high and note."""
    if gain.value is None or gain_distill.value is None:
        return None, None, None, UNDEFINED_METRIC
    if gain.value <= 0:
        return None, None, None, NO_GAIN
    value = gain_distill.value / gain.value
    if gain.low is None or gain.low <= 0:
        return value, None, None, WITHIN_NOISE
    low, high = quantiles(eta_samples(draws, sign, draws.spread(GAIN_DISTILL - value * GAIN).share), confidence)
    if not np.isfinite([low, high]).all():
        return value, None, None, WITHIN_NOISE
    return value, low, high, ""


def eta_samples(draws: Draws, sign: float, share: float) -> NDArray[np.float64]:
    """``[R']`` resampled ratios of the gains; ``share`` as in :class:`recdistill_pipeline.statistics_bootstrap.Spread`.

    The share that fits is that of ``gain_distill - eta * gain``, whose sign says on which side of eta a ratio lies.
    """
    means = sign * draws.means(share)
    return ratio_samples(means @ GAIN_DISTILL, means @ GAIN)


def _fieller(draws: Draws, sign: float, value: float, confidence: float) -> tuple[float, float] | None:
    if len(draws.samples) < 2:
        return None
    gains = np.stack([GAIN_DISTILL, GAIN])
    spread = draws.spread(GAIN_DISTILL - value * GAIN)
    covariance = spread.share * np.cov(gains @ draws.samples.mean(axis=2).T)
    if draws.over_seeds:
        covariance += np.cov(gains @ draws.point) / draws.seeds
    critical = critical_value(spread.users, spread.seeds, draws.seeds - 1, confidence)
    numerator, denominator = sign * gains @ draws.values()
    return fieller(float(numerator), float(denominator), covariance, critical=critical)


def _interval(draws: Draws, contrast: NDArray[np.float64], confidence: float) -> Interval:
    """Of a linear combination of the three sides."""
    value = float(contrast @ draws.values())
    if not np.isfinite(value):
        return Interval(None, None, None)
    if len(draws.samples) < 2:
        return Interval(value, None, None)
    samples = draws.means(draws.spread(contrast).share) @ contrast
    return Interval(value, *quantiles(samples, confidence))


def _check(
    label: NDArray[np.float64],
    user: NDArray[np.int64],
    sides: dict[str, Sequence[NDArray[np.float64]]],
    resamples: int,
    confidence: float,
) -> None:
    where = "transferability"
    if resamples < 100:
        raise UsageError(f"resamples must be at least 100, got {resamples}", where=where, fix="1000 is usual")
    if not 0.5 < confidence < 1:
        raise UsageError(f"confidence must lie in (0.5, 1), got {confidence}", where=where, fix="0.95 is usual")
    seeds = len(sides["raw"])
    if seeds == 0 or len(sides["distilled"]) != seeds or len(sides["teacher"]) not in (1, seeds):
        counts = ", ".join(f"{len(models)} {name}" for name, models in sides.items())
        raise UsageError(
            f"the sides have different numbers of seeds: {counts}",
            where=where,
            fix="give one raw and one distilled student per seed, and one teacher in all or per seed",
        )
    for name, models in sides.items():
        for at, logit in enumerate(models):
            if not logit.shape == label.shape == user.shape:
                raise UsageError(
                    f"logits have shape {list(logit.shape)}, labels {list(label.shape)}, users {list(user.shape)}",
                    where=f"{where}, {name} seed {at}",
                    fix="score the same evaluation rows with every model",
                )


def auc_of(score: NDArray[np.generic], label: NDArray[np.float64]) -> float:
    """P(a positive has the higher score than a negative), ties counted half.

    Args:
        score: ``[N]``. label: ``[N]`` of 0 and 1, both of which there are.
    """
    place = np.unique(score, return_inverse=True)[1]
    positive = np.bincount(place, label)
    negative = np.bincount(place) - positive
    below = np.cumsum(negative) - negative
    return float(positive @ (below + negative / 2) / (positive.sum() * negative.sum()))
