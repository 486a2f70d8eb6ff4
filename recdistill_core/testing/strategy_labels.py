"""What a head strategy makes of labels: the student's own, and the teacher's, valid or not."""

from __future__ import annotations

import torch
from torch import Tensor

from recdistill_core.batch import Batch, TeacherSignal
from recdistill_core.interfaces import DistillationLoss
from recdistill_core.objective import Objective
from recdistill_core.testing.cases import Case, NotApplicable, check
from recdistill_core.testing.models import ROUNDING, moved
from recdistill_core.testing.samples import TASK, sample_batch
from recdistill_core.testing.strategy import ROWS, Heads, Squares, gradients, terms_of, unit_parts


class Nothing(DistillationLoss):
    """A distillation loss for checks that is 0 and has no gradient."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        """``[N]``."""
        return torch.zeros_like(teacher_logit)


@check("strategy")
def main_tower_learns_from_labels(case: Case) -> None:
    """Without any valid teacher label the main tower gets the raw student's gradient, up to one positive factor."""
    batch = _with_signal(_garbage(float("nan")))
    made = case.build()
    heads = Heads(case, made)
    found = gradients(Objective(TASK, made, Squares()).terms(heads, batch), heads)["main"]
    case.require(
        bool(found.any()),
        "gives the main tower, which is served, nothing to learn where the teacher has no label; give it the term "
        'parts.hard(heads["main"])',
    )
    raw_heads = {"main": heads["main"].detach().clone().requires_grad_()}
    raw = gradients(Objective(TASK).terms(raw_heads, batch), raw_heads)["main"]
    place = int(raw.abs().argmax())
    factor = float(found[place] / raw[place])
    same = factor > 0 and torch.allclose(found, factor * raw, rtol=ROUNDING, atol=1e-7)
    case.require(
        same,
        "trains the main tower on something else than its labels where the teacher has none; its gradient must then be "
        'that of parts.hard(heads["main"])',
    )


@check("strategy")
def invalid_teacher_labels_move_no_head(case: Case) -> None:
    """Where no teacher label is valid, whatever stands in its place, soft terms add no gradient to any head."""
    made = case.build()
    heads = Heads(case, made)
    wanted = gradients(Objective(TASK, made, Nothing()).terms(heads, _with_signal(None)), heads)
    for value in (float("nan"), float("inf"), 3.0):
        made = case.build()
        heads = Heads(case, made)
        batch = _with_signal(_garbage(value))
        found = gradients(Objective(TASK, made, Squares()).terms(heads, batch), heads)
        for name, gradient in found.items():
            where = moved({name: wanted[name]}, {name: gradient}, of="head")
            case.require(
                not where,
                f"lets invalid teacher labels ({value}) move a head: the gradient differs at {where}; use "
                "the soft loss as it is, without dividing by it or by a count",
            )


@check("strategy")
def valid_teacher_labels_move_some_head(case: Case) -> None:
    """A strategy that needs a teacher gives other gradients to some head when the teacher's labels are others."""
    made = case.build()
    if "teacher" not in case.entry.component.needs_of(case.config):
        raise NotApplicable("it does not need teacher labels")
    found = []
    for value in (-3.0, 3.0):
        made = case.build()
        heads = Heads(case, made)
        batch = _with_signal(_garbage(value, valid=True))
        found.append(gradients(Objective(TASK, made, Squares()).terms(heads, batch), heads))
    case.require(
        bool(moved(*found)),
        "needs teacher labels and learns nothing from them: no head's gradient depends on the teacher; add a term with "
        "parts.soft, or give the example a weight that is not 0",
    )


@check("strategy")
def it_says_that_it_needs_a_teacher(case: Case) -> None:
    """A strategy that reads the soft loss declares ``needs={"teacher"}``, so that a run without labels is refused."""
    parts = unit_parts()
    terms_of(case, parts)
    declared = "teacher" in case.entry.component.needs_of(case.config)
    case.require(
        declared or "soft" not in parts.asked,
        "reads the soft loss and does not say that it needs teacher labels; give its Component "
        'needs=frozenset({"teacher"})',
    )


def _garbage(value: float, *, valid: bool = False) -> TeacherSignal:
    column = torch.full((ROWS,), value)
    return TeacherSignal({TASK: column}, {TASK: torch.full((ROWS,), valid)}, "check")


def _with_signal(signal: TeacherSignal | None) -> Batch:
    return sample_batch(rows=ROWS).with_teacher(signal)
