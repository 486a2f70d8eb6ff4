"""The metric itself: the work that all resamples share is done once, in ``prepare``."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from recdistill_core.errors import DataError

from recdistill_myplugin import MyPluginConfig


class MyPluginMetric:
    """``sum_u v_u * (mean log loss of user u) / sum_u v_u`` with user weights ``v``, in nats.

    Args:
        config: holds ``min_rows``.
    """

    higher_is_better = False

    def __init__(self, config: MyPluginConfig) -> None:
        self.min_rows = config.min_rows

    def prepare(
        self, logit: NDArray[np.float64], label: NDArray[np.float64], user: NDArray[np.int64]
    ) -> Callable[[NDArray[np.float64]], float]:
        """Sum once, evaluate often.

        Args:
            logit: ``[N]`` before the sigmoid. label: ``[N]`` of 0 and 1. user: ``[N]`` in ``[0, U)``.

        Returns:
            a function of user weights ``[U]`` to the metric; NaN where no user with a weight has ``min_rows`` rows.

        Raises:
            DataError: for no rows, non-finite logits, or labels other than 0 and 1.
        """
        if not len(logit) or not np.isfinite(logit).all() or not np.isin(label, (0, 1)).all():
            raise DataError(
                "there must be rows, with finite logits and labels of 0 and 1",
                where="metric 'my-plugin'",
                fix="look for rows without a label, and for a model that has diverged",
            )
        loss = np.logaddexp(0.0, logit) - label * logit
        rows = np.bincount(user)
        mean = np.bincount(user, weights=loss) / np.maximum(rows, 1)
        counted = rows >= self.min_rows

        def evaluate(weights: NDArray[np.float64]) -> float:
            vote = np.asarray(weights, dtype=np.float64) * counted
            total = float(vote.sum())
            return float(vote @ mean) / total if total > 0 else math.nan

        return evaluate
