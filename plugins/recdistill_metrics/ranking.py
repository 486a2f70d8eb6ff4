"""AUC over all rows and AUC within users."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recdistill_metrics.checks import check_arrays, per_user
from recdistill_metrics.rows import Evaluate, RowMetric


class Auc(RowMetric):
    """P(random click scored above random non-click), ties counted half (Mann-Whitney). NaN without both classes.

    Args:
        thresholds: see :class:`recdistill_metrics.rows.RowMetric`; rows of one bin count as ties.
    """

    higher_is_better = True

    def prepare(self, logit: NDArray[np.float64], label: NDArray[np.float64], user: NDArray[np.int64]) -> Evaluate:
        """Sort clicks and non-clicks once; each evaluation is one cumulative sum, exact with ties.

        Args:
            logit: ``[N]`` before the sigmoid. label: ``[N]`` of 0 and 1. user: ``[N]`` in ``[0, U)``.

        Raises:
            DataError: see :func:`recdistill_metrics.checks.check_arrays`.
        """
        check_arrays(logit, label, user, "auc")
        users, where = int(user.max()) + 1, label != 0
        click, other = (np.flatnonzero(rows)[np.argsort(logit[rows], kind="stable")] for rows in (where, ~where))
        # Non-clicks below a click are other[:below], those tied with it other[below:upto].
        below = _compact(np.searchsorted(logit[other], logit[click], side="left"), len(logit))
        upto = _compact(np.searchsorted(logit[other], logit[click], side="right"), len(logit))
        click_user, other_user = _compact(user[click], users), _compact(user[other], users)

        def evaluate(weights: NDArray[np.float64]) -> float:
            weights = per_user(np.asarray(weights, dtype=np.float64), users, "auc")
            mass = np.zeros(len(other_user) + 1)
            np.cumsum(weights.take(other_user), out=mass[1:])
            clicks = weights.take(click_user)
            pairs = clicks.sum() * mass[-1]
            return float(clicks @ (mass.take(below) + mass.take(upto)) / (2 * pairs)) if pairs > 0 else math.nan

        return evaluate

    def from_bins(
        self, mass: NDArray[np.float64], clicks: NDArray[np.float64], predicted: NDArray[np.float64]
    ) -> float:
        """See :meth:`recdistill_metrics.rows.RowMetric.from_bins`."""
        other = mass - clicks
        pairs = clicks.sum() * other.sum()
        return float(clicks @ (np.cumsum(other) - other / 2) / pairs) if pairs > 0 else math.nan


class Gauc(RowMetric):
    """AUC of each user's rows, averaged with the number of impressions as weight (DIN, arXiv 1706.06978, section 6.1).

    Users with only clicks or only non-clicks have no AUC and are left out; always report :meth:`coverage` beside it.
    """

    higher_is_better = True
    needs_user = True

    def __init__(self) -> None:
        super().__init__()

    def prepare(self, logit: NDArray[np.float64], label: NDArray[np.float64], user: NDArray[np.int64]) -> Evaluate:
        """AUC per user once; each evaluation is two dot products. Arguments and errors as in :meth:`Auc.prepare`."""
        check_arrays(logit, label, user, "gauc")
        value, rows = per_user_auc(logit, label, user)
        share = np.where(np.isnan(value), 0.0, rows)
        total = share * np.nan_to_num(value)

        def evaluate(weights: NDArray[np.float64]) -> float:
            weights = per_user(np.asarray(weights, dtype=np.float64), len(share), "gauc")
            covered = weights @ share
            return float(weights @ total / covered) if covered > 0 else math.nan

        return evaluate

    def coverage(self) -> torch.Tensor:
        """Share of the impressions so far (of this rank) that belong to users with both classes."""
        _, label, user = self.rows()
        return torch.tensor(coverage(label, user), dtype=torch.float32)


def coverage(label: NDArray[np.float64], user: NDArray[np.int64]) -> float:
    """Share of the impressions that belong to users with both classes; ``label [N]``, ``user [N]`` in ``[0, U)``."""
    if len(label) == 0:
        return math.nan
    value, rows = per_user_auc(np.zeros(len(label)), label, user)
    return float(rows[~np.isnan(value)].sum() / rows.sum())


def per_user_auc(
    logit: NDArray[np.float64], label: NDArray[np.float64], user: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUC ``[U]`` of each user's rows (NaN without both classes) and number of rows ``[U]``."""
    users = int(user.max()) + 1
    order = np.lexsort((logit, user))
    logit, label, user = logit[order], label[order], user[order]
    rows = np.bincount(user, minlength=users).astype(np.float64)
    clicks = np.bincount(user, weights=label, minlength=users)
    start = np.flatnonzero(np.r_[True, (np.diff(logit) != 0) | (np.diff(user) != 0)])  # of each run of ties
    length = np.diff(np.r_[start, len(logit)])
    rank = np.repeat(start + (length + 1) / 2, length) - (np.cumsum(rows) - rows)[user]  # 1-based, within the user
    wins = np.bincount(user, weights=rank * label, minlength=users) - clicks * (clicks + 1) / 2
    pairs = clicks * (rows - clicks)
    return np.divide(wins, pairs, out=np.full(users, np.nan), where=pairs > 0), rows


def _compact(index: NDArray[Any], largest: int) -> NDArray[np.integer[Any]]:
    """``index`` in 4 bytes where they suffice: a bootstrap keeps several prepared models in memory."""
    return index.astype(np.int32 if largest < 2**31 else np.int64)
