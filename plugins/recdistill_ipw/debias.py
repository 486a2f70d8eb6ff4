"""Inverse propensity weights from the propensities in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError, UsageError
from recdistill_core.interfaces import Debiaser

_LOG = logging.getLogger(__name__)


class Ipw(Debiaser):
    """``w = 1 / max(propensity, clip)``, so that ``mean(w * loss)`` estimates the loss over all that could be shown.

    Horvitz and Thompson 1952; for recommenders Schnabel et al. 2016, arXiv 1602.05352. Without clipping it is unbiased.
    Clipping trades variance for bias: a row of propensity ``q < clip`` counts ``q / clip`` of what it should, so a
    non-negative loss is under-estimated, and what is rarely shown is still neglected, only less.

    SNIPS (Swaminathan and Joachims 2015) divides by the weights: ``sum(w * l) / sum(w)``. Here each ``w`` is divided by
    the mean weight over the observed training rows of the task, learnt in :meth:`fit`. Over the whole training data
    that is the same number, and, unlike a mean over each batch, it keeps the loss linear in the batch.

    IPW can hurt: on Baidu-ULTR it lowered nDCG@10 from .357 to .307. Look at :meth:`report` first.

    Args:
        tasks: names of the tasks; statistics are kept for each.
        clip: in (0, 1]. snips: self-normalise. min_effective_share: of the warning in :meth:`fit`.
    """

    moments: Tensor

    def __init__(
        self, tasks: Sequence[str], *, clip: float = 0.01, snips: bool = True, min_effective_share: float = 0.1
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.clip, self.snips, self.min_effective_share = clip, snips, min_effective_share
        #: ``[T, 4]``: observed rows, sum of weights, sum of squared weights, clipped rows.
        self.register_buffer("moments", torch.zeros(len(self.tasks), 4, dtype=torch.float64))

    def fit(self, batches: Iterable[Batch], task: str) -> None:
        """Learn the mean weight over the observed rows of ``task``; memory does not grow with the data.

        Logs a warning where the effective sample size is below ``min_effective_share`` of the rows.

        Raises:
            DataError: see :meth:`weight`. UsageError: for a task that this debiaser was not built for.
        """
        at = self._task(task)
        total = torch.zeros(4, dtype=torch.float64)
        for batch in batches:
            propensity = _propensity(batch)[batch.observed[task]]
            weight = 1.0 / propensity.double().clamp(min=self.clip)
            rows = float(weight.numel())
            clipped = float((propensity < self.clip).sum())
            total += torch.tensor([rows, float(weight.sum()), float(weight.square().sum()), clipped]).double()
        self.moments[at] = total.to(self.moments)
        share = self._facts(at)["effective_share"]
        if total[0] and share < self.min_effective_share:
            _LOG.warning(
                "ipw: task %r has an effective sample size of %.1f%% of its %d rows: "
                "a few rows carry most of the weight; raise clip (now %g) or leave ipw out",
                *(task, 100 * share, int(total[0]), self.clip),
            )

    def weight(self, batch: Batch, task: str) -> Tensor:
        """``[N]`` float32 weights; with ``snips`` their mean over the observed training rows is 1.

        Raises:
            DataError: if the batch has no propensities, or one outside (0, 1].
            UsageError: with ``snips``, before :meth:`fit`, or for an unknown task.
        """
        weight: Tensor = 1.0 / _propensity(batch).float().clamp(min=self.clip)
        if not self.snips:
            return weight
        rows, total = (float(moment) for moment in self.moments[self._task(task)][:2])
        if rows == 0:
            raise UsageError(
                f"snips divides by the mean weight of the training rows of task {task!r}, which is not known",
                where="debiaser 'ipw'",
                fix="call fit(training_batches, task) first, load a fitted state, or set snips: false",
            )
        return weight * (rows / total)

    def report(self) -> Mapping[str, Any]:
        """Per task: rows, mean weight, effective sample size ``(sum w)^2 / sum w^2``, its share, share clipped."""
        return {task: self._facts(at) for at, task in enumerate(self.tasks) if self.moments[at, 0] > 0}

    def _facts(self, at: int) -> dict[str, float]:
        rows, total, squares, clipped = (float(moment) for moment in self.moments[at])
        effective = total**2 / squares if squares else 0.0
        return {
            "rows": rows,
            "mean_weight": total / rows if rows else 0.0,
            "effective_sample_size": effective,
            "effective_share": effective / rows if rows else 0.0,
            "clipped_share": clipped / rows if rows else 0.0,
        }

    def _task(self, task: str) -> int:
        if task not in self.tasks:
            raise UsageError(
                f"debiaser 'ipw' was not built for task {task!r}",
                where=f"its tasks: {', '.join(self.tasks) or 'none'}",
                fix="name the task when building it",
            )
        return self.tasks.index(task)


def _propensity(batch: Batch) -> Tensor:
    """``[N]``, checked."""
    if batch.propensity is None:
        raise DataError(
            "the batch has no propensities", where="debiaser 'ipw'", fix="import the log with a propensity column"
        )
    wrong = ~((batch.propensity > 0) & (batch.propensity <= 1))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"propensity {float(batch.propensity[row]):g} is outside (0, 1]",
            where=f"debiaser 'ipw', row {row} of a batch, example {int(batch.example_id[row])}",
            fix="drop rows that could not have been shown, and log probabilities, not odds or ranks",
        )
    return batch.propensity
