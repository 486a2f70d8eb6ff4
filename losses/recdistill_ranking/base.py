"""What all ranking losses share: shapes, precision, grouping, and rows that are absent."""

from __future__ import annotations

import torch
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError
from recdistill_core.interfaces import DistillationLoss
from recdistill_ranking.requests import Requests


class RankingLoss(DistillationLoss):
    """A loss over the rows of one request. Subclasses implement :meth:`distance`.

    A request with fewer than two rows of positive weight has no order and gives exactly 0.
    """

    def distance(self, student: Tensor, teacher: Tensor, requests: Requests, batch: Batch) -> Tensor:
        """``[N]`` unweighted distances, finite everywhere; what stands at absent rows is dropped.

        Args:
            student: logits ``[N]``, float32 or float64; 0 at absent rows.
            teacher: logits ``[N]`` alike, without gradient.
            requests: the requests and which rows are members of them.
            batch: the rows.
        """
        raise NotImplementedError

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        """See :meth:`recdistill_core.interfaces.DistillationLoss.forward`; half precision is computed in float32.

        Raises:
            DataError: if the three tensors and ``batch.request_id`` differ in shape.
        """
        _check_shapes(student_logit, teacher_logit, weight, batch.request_id)
        member = weight > 0
        wide = torch.promote_types(student_logit.dtype, torch.float32)
        # Masked before the distance as well as after it: 0 * inf and 0 * nan must not reach the gradient.
        student = torch.where(member, student_logit.to(wide), 0.0)
        teacher = torch.where(member, teacher_logit.detach().to(wide), 0.0)
        requests = Requests(batch.request_id, member)
        values = self.distance(student, teacher, requests, batch)
        return torch.where(member & (requests.size > 1), weight * values, 0.0)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """``P (log P - log Q) - P + Q`` of log shares ``student = log Q [N]`` and ``teacher = log P [N]``.

    Over one list the last two terms sum to 0, which leaves the cross-entropy less the teacher's entropy. Row by row
    they keep the smallest value at ``Q = P`` whatever the rows' weights are.
    """
    share = teacher.exp()
    return share * (teacher - student) - share + student.exp()


def _check_shapes(student: Tensor, teacher: Tensor, weight: Tensor, request: Tensor) -> None:
    columns = (student, teacher, weight, request)
    if not (student.ndim == 1 and all(column.shape == student.shape for column in columns)):
        shapes = ", ".join(str(list(column.shape)) for column in columns)
        raise DataError(
            "student logit, teacher logit, weight and request_id must all have one shape [N]",
            where=f"ranking loss, shapes {shapes}",
            fix="squeeze the tower's output to [N] and give one weight per row",
        )
