"""Intervals for a ratio of two noisy numbers, and how surprising a number is that should be 0."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray

ONE = torch.ones(1, dtype=torch.float64)


def fieller(
    mean_num: float,
    mean_den: float,
    cov: NDArray[np.float64],
    *,
    confidence: float = 0.95,
    critical: float | None = None,
) -> tuple[float, float] | None:
    """Fieller's (1954) interval for ``mean_num / mean_den``, for two means that are jointly normal.

    Args:
        mean_num: estimate of the numerator. mean_den: estimate of the denominator.
        cov: ``[2, 2]`` covariance of the two estimates, numerator first.
        confidence: of the interval.
        critical: how many standard errors away a value is refused; None: the normal quantile of ``confidence``.

    Returns:
        ``(low, high)``, or None where the denominator does not differ from 0 at this confidence (unbounded).
    """
    quantile = (NormalDist().inv_cdf(0.5 + confidence / 2) if critical is None else critical) ** 2
    # The ratios r with (num - r den)^2 <= quantile * var(num - r den): a r^2 - 2 b r + c <= 0.
    a = mean_den**2 - quantile * float(cov[1, 1])
    b = mean_num * mean_den - quantile * float(cov[0, 1])
    c = mean_num**2 - quantile * float(cov[0, 0])
    if a <= 0:
        return None
    root = math.sqrt(max(b * b - a * c, 0.0))
    return (b - root) / a, (b + root) / a


def p_value(distance: float, users: float, seeds: float, degrees: int) -> float:
    """Two-sided p-value of an estimate that should be 0, with a variance in two parts (Behrens and Fisher).

    ``distance`` is compared with ``sqrt(users) * Z + sqrt(seeds) * t``, ``Z`` standard normal and ``t`` of Student's
    distribution. Of the solutions for two variances that are not known equally well it errs to the safe side.

    Args:
        distance: the estimate. users: the variance that is known well, at least 0.
        seeds: the variance that is known with ``degrees`` degrees of freedom, at least 0; 0 with ``degrees`` 0.
    """
    if distance == 0:
        return 1.0
    if users <= 0 and seeds <= 0:
        return 0.0
    factor, weight = _inverse_chi_square(degrees) if seeds > 0 else (ONE, ONE)
    spread = torch.sqrt(users + seeds * factor)
    return float((torch.special.erfc(abs(distance) / (math.sqrt(2) * spread)) * weight).sum())


def critical_value(users: float, seeds: float, degrees: int, confidence: float) -> float:
    """How many standard errors ``sqrt(users + seeds)`` away :func:`p_value` is ``1 - confidence``."""
    error = math.sqrt(users + seeds)
    if error == 0 or seeds <= 0:
        return NormalDist().inv_cdf(0.5 + confidence / 2)
    low, high = 0.0, 1.0
    while p_value(high * error, users, seeds, degrees) > 1 - confidence:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        if p_value(middle * error, users, seeds, degrees) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _inverse_chi_square(degrees: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of ``degrees / chi-square`` and their weights, by the trapezoid rule over the logarithm."""
    log = torch.linspace(-40.0, math.log(degrees + 20 * math.sqrt(degrees) + 100), 1001, dtype=torch.float64)
    density = degrees / 2 * log - torch.exp(log) / 2
    weight = torch.softmax(density, dim=0)
    return degrees * torch.exp(-log), weight


def ratio_samples(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[R]`` ratios of resampled gains.

    Where the denominator is not above 0 the ratio has passed through its pole: it stands for "beyond any bound" with
    the numerator's sign, and must not come back from the other side as a small or negative number.
    """
    beyond = np.where(numerator < 0, -np.inf, np.inf)
    return np.divide(numerator, denominator, out=beyond, where=denominator > 0)


def quantiles(samples: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Ends of the percentile interval, each an actual sample, so that infinite samples are never averaged."""
    tail = (1 - confidence) / 2
    low = np.quantile(samples, tail, method="inverted_cdf")
    high = np.quantile(samples, 1 - tail, method="inverted_cdf")
    return float(low), float(high)
