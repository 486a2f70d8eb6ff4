"""Metrics that are functions of a few sums over rows: fixed memory and exact, streamed or resampled."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from recdistill_metrics.checks import check_arrays, check_rows, per_user
from recdistill_metrics.rows import Evaluate


class SumMetric(Metric):
    """Rows, clicks and one more sum. Subclasses implement :meth:`term` and :meth:`value`."""

    higher_is_better: bool = False
    is_differentiable = False
    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def term(self, logit: Tensor, label: Tensor) -> Tensor:
        """``[N]`` float64, what to sum besides rows and labels; ``logit [N]``, ``label [N]`` float64."""
        raise NotImplementedError

    def value(self, rows: float, clicks: float, term: float) -> float:
        """The metric from the three sums."""
        raise NotImplementedError

    def update(self, logit: Tensor, label: Tensor, user: Tensor | None = None) -> None:
        """Add rows; ``logit [N]`` before the sigmoid, ``label [N]`` of 0 and 1, ``user [N]`` ignored.

        Raises:
            DataError: see :func:`recdistill_metrics.checks.check_rows`.
        """
        check_rows(logit, label, user, type(self).__name__)
        logit, label = logit.detach().double(), label.double()
        rows = torch.full_like(label.sum(), len(label))
        self.sums += torch.stack([rows, label.sum(), self.term(logit, label).sum()])

    def compute(self) -> Tensor:
        """The metric of all rows so far, a float32 scalar; NaN where undefined and where there are no rows."""
        return torch.tensor(self.value(*self.sums.tolist()), dtype=torch.float32, device=self.device)

    def prepare(self, logit: NDArray[np.float64], label: NDArray[np.float64], user: NDArray[np.int64]) -> Evaluate:
        """Sums per user once; each evaluation is one product ``[U] @ [U, 3]``.

        Args:
            logit: ``[N]`` before the sigmoid. label: ``[N]`` of 0 and 1. user: ``[N]`` in ``[0, U)``.

        Raises:
            DataError: see :func:`recdistill_metrics.checks.check_arrays`.
        """
        name = type(self).__name__
        check_arrays(logit, label, user, name)
        click = torch.tensor(label, dtype=torch.float64)
        term = self.term(torch.tensor(logit, dtype=torch.float64), click)
        columns = [np.ones(len(label)), click.numpy(), term.numpy()]
        sums = np.stack([np.bincount(user, weights=column) for column in columns], axis=1)

        def evaluate(weights: NDArray[np.float64]) -> float:
            rows, clicks, total = per_user(np.asarray(weights, dtype=np.float64), len(sums), name) @ sums
            return self.value(float(rows), float(clicks), float(total))

        return evaluate


class NormalisedEntropy(SumMetric):
    """``NE = log loss / entropy of the base rate`` (He et al. 2014, "Practical lessons", equation 3).

    1 is the quality of always predicting the base rate; lower is better. NaN without both classes.
    """

    higher_is_better = False

    def term(self, logit: Tensor, label: Tensor) -> Tensor:
        """``[N]`` log losses in nats."""
        return functional.binary_cross_entropy_with_logits(logit, label, reduction="none")

    def value(self, rows: float, clicks: float, term: float) -> float:
        """See :meth:`SumMetric.value`."""
        if not 0 < clicks < rows:
            return math.nan
        rate = clicks / rows
        return (term / rows) / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))


class CalibrationRatio(SumMetric):
    """``sum p / sum y``: above 1 the model promises too many clicks. NaN without a click.

    The best value is 1, so neither direction is better: ``higher_is_better`` is False only because the interface has no
    third value. Do not compute a transferability from it; use ``ne`` or ``ece``.
    """

    higher_is_better = False

    def term(self, logit: Tensor, label: Tensor) -> Tensor:
        """``[N]`` predicted probabilities."""
        return torch.sigmoid(logit)

    def value(self, rows: float, clicks: float, term: float) -> float:
        """See :meth:`SumMetric.value`."""
        return term / clicks if clicks > 0 else math.nan
