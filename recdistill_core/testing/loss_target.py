"""Checks for distillation losses: where a student that descends them comes to rest."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from recdistill_core.interfaces import DistillationLoss
from recdistill_core.testing.cases import Case, check
from recdistill_core.testing.loss import Rows, per_row, sample_rows

#: Rows for a slope over requests of four; legal losses stay below 0.1 with it.
MANY = 144
#: Change of the logit at which a student rests, per unit of log weight. A distance whose minimum is at the teacher
#: gives 0 up to descents that have not ended; softmax cross-entropy with the weight on the target gives 1, and with
#: the root of the weight 0.5.
LARGEST_PULL = 0.25


@check("loss")
def it_pulls_the_student_to_the_teacher(case: Case) -> None:
    """Descending it from random logits, the student comes to order more pairs of rows as the teacher does."""
    rows = sample_rows(case, dtype=torch.float32)
    before, after = (_agreement(logit, rows.teacher) for logit in (rows.student, descended(case, rows)))
    case.require(
        after >= before + 0.1,
        f"does not bring the student to the teacher: of all pairs of rows {before:.0%} were in the teacher's order "
        f"before 150 steps of Adam, and {after:.0%} after; look at its sign and at the order of its arguments",
    )


@check("loss")
def weights_do_not_move_the_target(case: Case) -> None:
    """Descending it with weights of 0.1 to 10 within a request, the student comes where equal ones lead it."""
    rows = sample_rows(case, MANY, torch.float32)
    spread = torch.rand(MANY, generator=torch.Generator().manual_seed(12))
    rows = replace(rows, weight=torch.exp((2 * spread - 1) * math.log(10)))
    moved = descended(case, rows) - descended(case, replace(rows, weight=torch.ones(MANY)))
    logs, moved = (_centred(column, rows.batch.request_id) for column in (rows.weight.log(), moved))
    pull = float((moved * logs).sum() / logs.square().sum())
    case.require(
        abs(pull) <= LARGEST_PULL,
        f"lets weights move its target: a row of e times the weight settles {pull:+.2f} in the logit away from the "
        "rows of its request; weights say how much a row counts, not where its target lies, so give each row a "
        "distance that is smallest at the teacher; over a softmax p * (log p - log q) - p + q, not -p * log q",
    )


def descended(case: Case, rows: Rows) -> Tensor:
    """``[N]`` student's logits after 150 steps of Adam, whose steps do not depend on the scale of a row's loss."""
    made: DistillationLoss = case.build()
    student = rows.student.clone().requires_grad_()
    optimiser = torch.optim.Adam([student], lr=0.1)
    torch.manual_seed(1)
    for _ in range(150):
        optimiser.zero_grad()
        values = made(student, rows.teacher, rows.batch, rows.weight)
        per_row(case, values, rows).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimiser.step()
    return student.detach()


def _agreement(student: Tensor, teacher: Tensor) -> float:
    """Share of pairs of rows that both order alike."""
    alike = (student[:, None] - student) * (teacher[:, None] - teacher) > 0
    return float(alike.double().sum() / (len(student) * (len(student) - 1)))


def _centred(column: Tensor, request: Tensor) -> Tensor:
    """``[N]`` less the mean of its request."""
    same = (request[:, None] == request).to(column)
    return column - same @ column / same.sum(1)
