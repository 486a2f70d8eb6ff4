"""Intervals for a ratio of two noisy numbers."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


def fieller(
    mean_num: float, mean_den: float, cov: NDArray[np.float64], *, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Fieller's (1954) interval for ``mean_num / mean_den``, for two means that are jointly normal.

    Args:
        mean_num: estimate of the numerator. mean_den: estimate of the denominator.
        cov: ``[2, 2]`` covariance of the two estimates, numerator first.
        confidence: of the interval.

    Returns:
        ``(low, high)``, or None where the denominator does not differ from 0 at this confidence (unbounded).
    """
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    # The ratios r with (num - r den)^2 <= quantile * var(num - r den): a r^2 - 2 b r + c <= 0.
    a = mean_den**2 - quantile * float(cov[1, 1])
    b = mean_num * mean_den - quantile * float(cov[0, 1])
    c = mean_num**2 - quantile * float(cov[0, 0])
    if a <= 0:
        return None
    root = math.sqrt(max(b * b - a * c, 0.0))
    return (b - root) / a, (b + root) / a


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
