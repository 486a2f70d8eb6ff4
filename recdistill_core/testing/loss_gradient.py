"""Checks for distillation losses: where their gradients go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from recdistill_core.batch import TeacherSignal
from recdistill_core.interfaces import HeadStrategy, LossParts
from recdistill_core.objective import Objective
from recdistill_core.testing.cases import Case, check
from recdistill_core.testing.loss import sample_rows, values_of
from recdistill_core.testing.samples import TASK


@check("loss")
def its_gradient_is_right(case: Case) -> None:
    """In float64, the gradient for the student's logits is that of finite differences (gradcheck)."""
    rows = sample_rows(case, 8)
    dtype = values_of(case, rows).dtype
    case.require(
        dtype == torch.float64,
        f"answers in {str(dtype).removeprefix('torch.')} to float64 logits; widen half precision only",
    )
    try:
        torch.autograd.gradcheck(
            lambda student: values_of(case, replace(rows, student=student)), (rows.student.requires_grad_(),)
        )
    except GradcheckError as error:
        why = " ".join(str(error).split())[:160]
        case.fail(
            f"has a gradient that is not that of its values ({why}); look for detach(), .data, rounding or float32 "
            "inside, and for a wrong backward of an autograd.Function"
        )


@check("loss")
def no_gradient_reaches_the_teacher(case: Case) -> None:
    """The teacher's logit gets no gradient, even where it could take one."""
    rows = sample_rows(case)
    teacher = rows.teacher.requires_grad_()
    values = values_of(case, replace(rows, student=rows.student.requires_grad_()))
    (gradient,) = torch.autograd.grad(values.sum(), teacher, allow_unused=True)
    case.require(
        gradient is None or not bool(gradient.any()),
        "sends gradient to the teacher's logit; use teacher_logit.detach()",
    )


class _SoftOnly(HeadStrategy):
    """The distillation loss of the main head and nothing else."""

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> dict[str, Tensor]:
        """``{"main/soft": [N]}``."""
        return {"main/soft": parts.soft(heads["main"])}


@check("loss")
def no_teacher_label_gives_zero(case: Case) -> None:
    """Where no row has a teacher's label, every loss is exactly 0 and can still be differentiated."""
    batch = case.batch()
    count = len(batch)
    nothing = TeacherSignal({TASK: torch.full((count,), torch.nan)}, {TASK: torch.zeros(count, dtype=torch.bool)}, "")
    for signal in (nothing, None):
        logit = torch.linspace(-3, 3, count).requires_grad_()
        objective = Objective(TASK, _SoftOnly(), case.build())
        values = objective.terms({"main": logit}, batch.with_teacher(signal))["main/soft"]
        largest = float(values.detach().abs().max())
        case.require(
            largest == 0,
            f"gives {largest:g} instead of 0 where no row has a teacher's label; "
            "look for a division by the sum of the weights, and for a softmax over no rows",
        )
        gradient = None
        if values.requires_grad:
            (gradient,) = torch.autograd.grad(values.sum(), logit, allow_unused=True)
        if gradient is None:
            case.fail(
                "has no gradient path to the student where no row has a teacher's label, so that backward() fails; "
                "multiply by the weights instead of returning zeros"
            )
        case.require(
            not bool(gradient.any()),
            "has a gradient other than 0 where no row has a teacher's label; use torch.where before as well as after "
            "what is infinite there, for 0 * inf is NaN",
        )
