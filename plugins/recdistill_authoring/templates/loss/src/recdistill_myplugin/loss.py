"""The loss itself. Notation: ``z_S`` and ``z_T`` are logits before the sigmoid, ``w`` is the weight of a row."""

from __future__ import annotations

import recdistill_core as rd
import torch
from recdistill_core.errors import DataError
from torch import Tensor
from torch.nn import functional

from recdistill_myplugin import MyPluginConfig


class MyPluginLoss(rd.DistillationLoss):
    """``w * huber(z_S - z_T)``: ``d^2 / 2`` where ``|d| <= delta``, else ``delta * (|d| - delta / 2)`` (Huber 1964).

    Args:
        config: holds ``delta``.
    """

    def __init__(self, config: MyPluginConfig) -> None:
        super().__init__()
        self.delta = config.delta

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: rd.Batch, weight: Tensor) -> Tensor:
        """``[N]`` losses, already times the weight; half precision is computed in float32.

        Args:
            student_logit: ``[N]``, with gradient.
            teacher_logit: ``[N]``, 0 where the teacher has no label; no gradient reaches it.
            batch: the rows; not used, a pointwise loss needs no neighbours.
            weight: ``[N]`` >= 0; a row of weight 0 gives exactly 0 and no gradient.

        Raises:
            DataError: if the three shapes differ; they would broadcast to ``[N, N]``.
        """
        if not student_logit.shape == teacher_logit.shape == weight.shape:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in (student_logit, teacher_logit, weight))
            raise DataError(
                f"logits and weight must have one shape [N], got {shapes}",
                where="loss 'my-plugin'",
                fix="squeeze the tower's output to [N] and give one weight per row",
            )
        active = weight != 0
        # masked on both sides of the distance: 0 * inf and 0 * nan must reach neither the loss nor the gradient
        student = torch.where(active, _wide(student_logit), 0.0)
        teacher = torch.where(active, _wide(teacher_logit.detach()), 0.0)
        distance = functional.huber_loss(student, teacher, reduction="none", delta=self.delta)
        return torch.where(active, weight * distance, 0.0)


def _wide(logit: Tensor) -> Tensor:
    return logit.float() if logit.dtype in (torch.float16, torch.bfloat16) else logit
