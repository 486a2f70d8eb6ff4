"""The debiaser itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import recdistill_core as rd
import torch
from recdistill_core.errors import DataError
from torch import Tensor

from recdistill_myplugin import MyPluginConfig


class MyPluginDebiaser(rd.Debiaser):
    """``w = 1 / max(q, clip)`` with ``q`` the propensity of a row (Horvitz and Thompson 1952; arXiv 1602.05352).

    Without clipping the weighted mean is unbiased; clipping trades variance for bias. What a debiaser learns in
    :meth:`fit` belongs in buffers or parameters, so that it is saved with the weights.

    Args:
        config: holds ``clip``.
    """

    counts: Tensor

    def __init__(self, config: MyPluginConfig) -> None:
        super().__init__()
        self.clip = config.clip
        #: ``[3]`` float64: training rows, sum of their weights, clipped ones.
        self.register_buffer("counts", torch.zeros(3, dtype=torch.float64))

    def fit(self, batches: Iterable[rd.Batch], task: str) -> None:
        """Count rows, weights and clipped rows, for :meth:`report`; memory does not grow with the data."""
        total = torch.zeros(3, dtype=torch.float64)
        for batch in batches:
            weight, clipped = self.weight(batch, task).cpu(), _propensity(batch) < self.clip
            total += torch.tensor([len(batch), float(weight.sum()), float(clipped.sum())], dtype=torch.float64)
        self.counts.copy_(total)

    def weight(self, batch: rd.Batch, task: str) -> Tensor:
        """``[N]`` float32 in [1, 1 / clip].

        Raises:
            DataError: if the batch has no propensities.
        """
        return 1.0 / _propensity(batch).float().clamp(min=self.clip)

    def report(self) -> Mapping[str, float]:
        """Mean weight and clipped share of the training rows, for the run's manifest; empty before :meth:`fit`."""
        rows, weight, clipped = self.counts.tolist()
        return {"mean_weight": weight / rows, "clipped_share": clipped / rows} if rows else {}


def _propensity(batch: rd.Batch) -> Tensor:
    """``[N]`` in (0, 1]."""
    if batch.propensity is None:
        raise DataError(
            "the batch has no propensities",
            where="debiaser 'my-plugin'",
            fix="import the log with a column of propensities",
        )
    return batch.propensity
