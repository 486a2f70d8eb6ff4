"""The teacher's correction of the student's own residual, where the label bears it out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError
from recdistill_core.interfaces import DistillationLoss
from recdistill_soft.loss import check_shapes, wide


class Residual(DistillationLoss):
    """``KL(p_T || p_S) / P_T(y)`` where the teacher is nearer to the label ``y`` than the student is, else 0.

    With ``P_T(1) = p_T``, ``P_T(0) = 1 - p_T``, the student's residual ``r_S = y - p_S`` and the teacher's
    ``r_T = y - p_T``, the correction ``p_T - p_S = r_S - r_T`` is learnt only on rows whose label asks for a change of
    that sign. There ``d/dz_S`` is ``-(p_T - p_S) / p_T`` for ``y = 1`` and ``(p_S - p_T) / (1 - p_T)`` for ``y = 0``:
    the share of the teacher's probability that the student lacks, in [-1, 1].

    Why the division: a choice by label alone would keep corrections upwards with probability ``p`` and downwards with
    ``1 - p``, and where positives are rare that pulls every probability down. Divided by the probability of the label
    that lets it pass, a correction has the gradient of ``soft_ce`` in expectation if the teacher is calibrated; if
    not, ``p / p_T`` of it upwards and ``(1 - p) / (1 - p_T)`` downwards, ``p`` the true probability, so claims that
    labels do not bear out weigh less. A row whose label is not observed has the expectation over ``y ~ p_T``, which
    is ``KL(p_T || p_S)``. Our own derivation; no paper.

    Args:
        task: whose labels and observed mask are read.
    """

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task = task

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        """See :meth:`recdistill_core.interfaces.DistillationLoss.forward`; half precision is computed in float32.

        Raises:
            DataError: if the three tensors differ in shape, or the batch lacks the task's labels.
        """
        check_shapes(student_logit, teacher_logit, weight)
        if self.task not in batch.labels:
            raise DataError(
                f"the batch has no labels of task {self.task!r}, which the residual loss compares with",
                where=f"residual loss, labels of {', '.join(batch.labels) or 'no task'}",
                fix="name one of these tasks, or use soft_ce, which reads no labels",
            )
        active = weight != 0
        student = torch.where(active, wide(student_logit), 0.0)
        teacher = torch.where(active, wide(teacher_logit.detach()), 0.0)
        observed = batch.observed[self.task]
        positive = torch.where(observed, batch.labels[self.task], 0.0) > 0.5
        up, down = _correction(student, teacher), _correction(-student, -teacher)
        expected = torch.sigmoid(teacher) * up + torch.sigmoid(-teacher) * down
        return torch.where(active, weight * torch.where(observed, torch.where(positive, up, down), expected), 0.0)


def _correction(student: Tensor, teacher: Tensor) -> Tensor:
    """``[N]``: ``KL(p_T || p_S) / p_T`` where the teacher's logit is the higher one, else 0.

    With ``d = z_S - z_T`` it is ``log(1 + p_T (e^d - 1)) / p_T - d``, in which nothing cancels for a small ``p_T``; for
    a large one ``1 + p_T (e^d - 1)`` may be 0 in floating point, and the logarithm is a difference of softplus.
    """
    gap = (student - teacher).clamp(max=0)
    likely = torch.sigmoid(teacher).clamp(min=torch.finfo(teacher.dtype).tiny)
    small = likely < 0.5
    by_gap = torch.log1p(torch.where(small, likely, 0.5) * torch.expm1(gap))
    by_logit = functional.softplus(teacher + gap) - functional.softplus(teacher)
    return torch.where(small, by_gap, by_logit) / likely - gap
