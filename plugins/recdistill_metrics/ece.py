"""Expected calibration error over bins of equal mass."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from recdistill_metrics.checks import check_arrays, per_user
from recdistill_metrics.rows import Evaluate, RowMetric


class Ece(RowMetric):
    """``sum_b |sum of p - sum of y in bin b| / rows`` over bins of equally many rows, in order of the logit.

    Rows of one logit are split between bins in proportion, so that every bin has exactly the same mass, the value does
    not depend on the order of ties, and a row of weight 2 is two rows. Of a perfectly calibrated model the value is not
    0 but about ``0.8 * mean of sqrt(p (1 - p)) * sqrt(bins / rows)``: compare models on the same rows and bins only.

    Args:
        bins: number of bins.
        thresholds: see :class:`recdistill_metrics.rows.RowMetric`.
    """

    higher_is_better = False

    def __init__(self, bins: int = 20, thresholds: int | None = None) -> None:
        super().__init__(thresholds)
        self.equal_mass_bins = bins

    def prepare(self, logit: NDArray[np.float64], label: NDArray[np.float64], user: NDArray[np.int64]) -> Evaluate:
        """Sort once; each evaluation is two cumulative sums and draws the bins anew from the weights.

        Args:
            logit: ``[N]`` before the sigmoid. label: ``[N]`` of 0 and 1. user: ``[N]`` in ``[0, U)``.

        Raises:
            DataError: see :func:`recdistill_metrics.checks.check_arrays`.
        """
        check_arrays(logit, label, user, "ece")
        order = np.argsort(logit, kind="stable")
        ends = np.flatnonzero(np.r_[np.diff(logit[order]) != 0, True])  # last row of each run of ties
        error = (0.5 * (1 + np.tanh(logit / 2)) - label)[order]  # sigmoid without overflow
        users, row_user = int(user.max()) + 1, user[order]

        def evaluate(weights: NDArray[np.float64]) -> float:
            mass = per_user(np.asarray(weights, dtype=np.float64), users, "ece").take(row_user)
            return self._from_sums(np.cumsum(mass)[ends], np.cumsum(mass * error)[ends])

        return evaluate

    def from_bins(
        self, mass: NDArray[np.float64], clicks: NDArray[np.float64], predicted: NDArray[np.float64]
    ) -> float:
        """See :meth:`recdistill_metrics.rows.RowMetric.from_bins`."""
        return self._from_sums(np.cumsum(mass), np.cumsum(predicted - clicks))

    def _from_sums(self, mass: NDArray[np.float64], error: NDArray[np.float64]) -> float:
        """The metric from cumulative mass and cumulative ``p - y`` at the end of each run of ties."""
        total = mass[-1]
        if total <= 0:
            return math.nan
        edges = np.linspace(0, total, self.equal_mass_bins + 1)
        at_edge = np.interp(edges, np.r_[0.0, mass], np.r_[0.0, error])
        return float(np.abs(np.diff(at_edge)).sum() / total)
