"""The losses. All of them treat a row of weight 0 as absent and return at least float32.

Notation: ``z_S``, ``z_T`` logits before the sigmoid; ``p_S``, ``p_T`` their probabilities; ``w`` the row weight.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError
from recdistill_core.interfaces import DistillationLoss
from recdistill_core.schedule import RampConfig
from recdistill_core.strategy import Ramp


class PointwiseLoss(DistillationLoss):
    """A loss that is a function of one row's two logits. Subclasses implement :meth:`distance`."""

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``[N]`` distances of logits ``student [N]`` and ``teacher [N]``, float32 or float64, unweighted."""
        raise NotImplementedError

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        """See :meth:`recdistill_core.interfaces.DistillationLoss.forward`; half precision is computed in float32.

        Raises:
            DataError: if the three tensors differ in shape (they would broadcast to ``[N, N]``).
        """
        check_shapes(student_logit, teacher_logit, weight)
        active = weight != 0
        # Masked before the distance as well as after it: 0 * inf and 0 * nan must not reach the gradient.
        student = torch.where(active, wide(student_logit), 0.0)
        teacher = torch.where(active, wide(teacher_logit.detach()), 0.0)
        return torch.where(active, weight * self.distance(student, teacher), 0.0)


class SoftCrossEntropy(PointwiseLoss):
    """``-[p_T log p_S + (1 - p_T) log(1 - p_S)]``: Rec-Distill's black-box loss (arXiv 2605.29755).

    Equal to KL(p_T || p_S) plus the teacher's entropy, which has no gradient; so ``d/dz_S = p_S - p_T``.
    """

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``[N]`` cross-entropies."""
        return functional.binary_cross_entropy_with_logits(student, torch.sigmoid(teacher), reduction="none")


class TemperatureKL(PointwiseLoss):
    """``tau^2 * KL(p_T || p_S)`` with ``p = sigmoid(z / tau)`` (Hinton et al. 2015, arXiv 1503.02531).

    ``d/dz_S = tau * (p_S - p_T)``. Zero where the logits agree, up to rounding: about 1e-7 * tau^2 of either sign.

    Args:
        temperature: ``tau`` > 0. ramp: where it goes during training; None: it stays.
    """

    def __init__(self, temperature: float = 1.0, ramp: RampConfig | None = None) -> None:
        super().__init__()
        self.temperature = Ramp(temperature, ramp)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``[N]`` divergences."""
        temperature = self.temperature.value()
        student, teacher = student / temperature, teacher / temperature
        yes = torch.sigmoid(teacher) * (functional.logsigmoid(teacher) - functional.logsigmoid(student))
        no = torch.sigmoid(-teacher) * (functional.logsigmoid(-teacher) - functional.logsigmoid(-student))
        return temperature**2 * (yes + no)


class ProbabilityMSE(PointwiseLoss):
    """``(p_S - p_T)^2``: an ablation, not a recommendation.

    Its gradient ``2 (p_S - p_T) p_S (1 - p_S)`` vanishes where the student is saturated: a student that says 1e-6 for a
    teacher's 0.5 learns a million times more slowly than one that is nearly right. Use ``soft_ce``.
    """

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``[N]`` squared errors."""
        return (torch.sigmoid(student) - torch.sigmoid(teacher)).square()


def wide(logit: Tensor) -> Tensor:
    """The logits in float32 where they are in half precision."""
    return logit.float() if logit.dtype in (torch.float16, torch.bfloat16) else logit


def check_shapes(student: Tensor, teacher: Tensor, weight: Tensor) -> None:
    """Raise DataError unless all have one shape ``[N]``."""
    if not (student.ndim == 1 and student.shape == teacher.shape == weight.shape):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (student, teacher, weight))
        raise DataError(
            "student logit, teacher logit and weight must all have one shape [N]",
            where=f"distillation loss, shapes {shapes}",
            fix="squeeze the tower's output to [N] and give one weight per row",
        )
