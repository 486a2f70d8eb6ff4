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
from recdistill_pipeline.statistics_ratio import fieller, quantiles, ratio_samples

if TYPE_CHECKING:
    from recdistill_core.interfaces import Metric

__all__ = ["Eta", "Interval", "fieller", "transferability"]

UNDEFINED_METRIC = "undefined: the metric is undefined on these rows"
NO_GAIN = "undefined: teacher gain <= 0"
WITHIN_NOISE = "interval unbounded: the teacher's gain is within noise"


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

    Each resample draws users with replacement, the same for all models and seeds, and, with ``S > 1`` seeds, ``S - 1``
    seeds with replacement, the same for the three sides. So noise that the models share cancels, as it does in eta.
    (``S - 1`` draws give an unbiased variance, ``S`` would give ``(S - 1) / S`` of it: Rao and Wu 1988, section 2.)
    Even so, 2 or 3 seeds say little about the spread of seeds: where that dominates, the intervals are too narrow.

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
    return _summarise(draws, 1.0 if metric.higher_is_better else -1.0, confidence)


def _summarise(draws: Draws, sign: float, confidence: float) -> Eta:
    sides = {name: _interval(draws.point[at], draws.samples[:, at], confidence) for at, name in enumerate(SIDES)}
    point = sign * (draws.point[1:] - draws.point[0])
    samples = sign * (draws.samples[:, 1:] - draws.samples[:, :1])
    gain, gain_distill = (_interval(point[at], samples[:, at], confidence) for at in (0, 1))
    value, low, high, note = _eta(gain, gain_distill, samples, confidence)
    cross_check = None
    if value is not None and len(samples) > 1:
        covariance = np.cov(samples[:, ::-1], rowvar=False)
        cross_check = fieller(float(point[1]), float(point[0]), covariance, confidence=confidence)
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
    gain: Interval, gain_distill: Interval, samples: NDArray[np.float64], confidence: float
) -> tuple[float | None, float | None, float | None, str]:
    """Value, low, high and note; ``samples [R, 2]`` hold the teacher's and the distilled student's gain."""
    if gain.value is None or gain_distill.value is None:
        return None, None, None, UNDEFINED_METRIC
    if gain.value <= 0:
        return None, None, None, NO_GAIN
    value = gain_distill.value / gain.value
    if gain.low is None or gain.low <= 0:
        return value, None, None, WITHIN_NOISE
    low, high = quantiles(ratio_samples(samples[:, 1], samples[:, 0]), confidence)
    return value, low, high, ""


def _interval(value: float, samples: NDArray[np.float64], confidence: float) -> Interval:
    if not np.isfinite(value):
        return Interval(None, None, None)
    if len(samples) == 0:
        return Interval(float(value), None, None)
    return Interval(float(value), *quantiles(samples, confidence))


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
