"""Base of metrics that need the order of the rows: exact from all rows, or from bins of the logit in fixed memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from recdistill_core.errors import DataError
from recdistill_metrics.checks import check_rows

#: Bins are equally spaced in the logit between these; what lies beyond joins the outermost bins.
LOW, HIGH = -12.0, 12.0

#: Maps user weights ``[U]`` to the metric.
Evaluate = Callable[[NDArray[np.float64]], float]


class RowMetric(Metric):
    """A torchmetrics metric over rows. Subclasses implement :meth:`prepare` and, if binned, :meth:`from_bins`.

    State is summed or concatenated across ranks, so ranks may hold different numbers of rows.

    Args:
        thresholds: number of bins of the logit, or None to keep every row.

    Attributes:
        needs_user: whether ``update`` must be given the users.
    """

    higher_is_better: bool = True
    is_differentiable = False
    full_state_update = False
    needs_user = False
    bins: Tensor
    logit_rows: list[Tensor]
    label_rows: list[Tensor]
    user_rows: list[Tensor]

    def __init__(self, thresholds: int | None = None) -> None:
        super().__init__()
        self.thresholds = thresholds
        if thresholds is not None:
            self.add_state("bins", torch.zeros(3, thresholds, dtype=torch.float64), dist_reduce_fx="sum")
            return
        for name in ("logit_rows", "label_rows") + (("user_rows",) if self.needs_user else ()):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logit: Tensor, label: Tensor, user: Tensor | None = None) -> None:
        """Add rows.

        Args:
            logit: ``[N]`` float, before the sigmoid. label: ``[N]`` of 0 and 1. user: ``[N]`` int64 ids, or None.

        Raises:
            DataError: for non-finite logits, labels other than 0 and 1, unequal shapes, or users that are missing.
        """
        name = type(self).__name__
        check_rows(logit, label, user, name)
        logit = logit.detach().float() if logit.dtype != torch.float64 else logit.detach()
        if self.thresholds is not None:
            self.bins += _histogram(logit, label, self.thresholds)
            return
        self.logit_rows.append(logit)
        self.label_rows.append(label.to(torch.uint8))
        if self.needs_user:
            if user is None:
                raise DataError("the users are missing", where=name, fix="call update(logit, label, user)")
            self.user_rows.append(user.to(torch.int64))

    def compute(self) -> Tensor:
        """The metric of all rows so far, a float32 scalar; NaN where undefined and where there are no rows."""
        return torch.tensor(self._value(), dtype=torch.float32, device=self.device)

    def _value(self) -> float:
        if self.thresholds is not None:
            return self.from_bins(*self.bins.cpu().numpy())
        logit, label, user = self.rows()
        return self.prepare(logit, label, user)(np.ones(int(user.max()) + 1)) if len(logit) else math.nan

    def rows(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """``logit [N]``, ``label [N]`` and ``user [N]`` in ``[0, U)`` (all 0 where users are not needed) so far."""
        logit = _joined(self.logit_rows).astype(np.float64)
        label = _joined(self.label_rows).astype(np.float64)
        if not self.needs_user:
            return logit, label, np.zeros(logit.shape[0], dtype=np.int64)
        _, user = np.unique(_joined(self.user_rows), return_inverse=True)
        return logit, label, user

    def prepare(self, logit: NDArray[np.float64], label: NDArray[np.float64], user: NDArray[np.int64]) -> Evaluate:
        """See :meth:`recdistill_core.interfaces.Metric.prepare`."""
        raise NotImplementedError

    def from_bins(
        self, mass: NDArray[np.float64], clicks: NDArray[np.float64], predicted: NDArray[np.float64]
    ) -> float:
        """The metric from ``[B]`` rows, sum of labels and sum of probabilities per bin of rising logit."""
        raise NotImplementedError


def _joined(batches: list[Tensor]) -> NDArray[Any]:
    """The rows of a list of batches, or of the one tensor that torchmetrics makes of it when it gathers ranks."""
    joined: NDArray[Any] = dim_zero_cat(batches).cpu().numpy() if len(batches) else np.zeros(0)
    return joined


def _histogram(logit: Tensor, label: Tensor, count: int) -> Tensor:
    """``[3, count]`` float64: rows, sum of labels and sum of probabilities per bin."""
    index = ((logit.double() - LOW) * (count / (HIGH - LOW))).long().clamp(0, count - 1)
    terms = torch.stack([torch.ones_like(logit), label.to(logit.dtype), torch.sigmoid(logit)]).double()
    return torch.zeros(3, count, dtype=torch.float64, device=logit.device).index_add_(1, index, terms)
