"""Checks for distillation losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.testing import answers
from recdistill_core.testing.cases import Case, check, exercise
from recdistill_core.testing.compare import largest_gap
from recdistill_core.testing.samples import sample_batch

#: Relative to the largest value; float64 is finer, but a loss may do part of its work in float32.
TOLERANCE = 1e-5
#: Enough that every user has two requests, of four rows each.
ROWS = 48


@dataclass(frozen=True)
class Rows:
    """What a loss is given: ``student``, ``teacher`` and ``weight`` ``[N]``, and the batch."""

    student: Tensor
    teacher: Tensor
    batch: Batch
    weight: Tensor

    def at(self, index: Tensor) -> Rows:
        """The rows ``index [M]``."""
        return Rows(self.student[index], self.teacher[index], self.batch.rows(index), self.weight[index])


def sample_rows(case: Case, count: int = ROWS, dtype: torch.dtype = torch.float64) -> Rows:
    """``count`` rows with weights between 0.5 and 1.5 and logits about as far apart as in a run."""
    draw = torch.Generator().manual_seed(11)
    batch = sample_batch(case.schema, rows=count)
    student, teacher = (2 * torch.randn(count, generator=draw, dtype=dtype) for _ in range(2))
    return Rows(student, teacher, batch, 0.5 + torch.rand(count, generator=draw, dtype=dtype))


def values_of(case: Case, rows: Rows) -> Tensor:
    """``[N]`` losses of a new object, so that one that keeps statistics of what it has seen answers anew."""
    made = case.build()
    torch.manual_seed(1)
    with answers.in_torch(case, "forward"):
        return per_row(case, made(rows.student, rows.teacher, rows.batch, rows.weight), rows)


def per_row(case: Case, answer: Any, rows: Rows) -> Tensor:
    """``answer``, once it is a tensor ``[N]`` on the CPU; without that no other fault could be told."""
    values = answers.tensor(case, answer, "forward")
    count, shape = len(rows.weight), list(values.shape)
    what = f"returns shape {shape} for {count} row{'s' if count > 1 else ''}"
    case.require(bool(shape), f"reduces by itself: {what}; return one value per row and leave the mean to recdistill")
    case.require(shape == [count], f"{what}; return one value per row, shape [{count}]")
    device = values.device.type
    case.require(device == "cpu", f"answers on the device {device} to rows on the cpu; leave tensors where they are")
    return values


def slope(case: Case, values: Tensor, rows: Rows) -> Tensor:
    """``[N]`` gradient of the sum of ``values`` for the student's logits."""
    return answers.gradient(case, values, rows.student, "the student's logit")


def gap(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value that is wanted."""
    found, wanted = found.detach(), wanted.detach()
    return largest_gap(found, wanted) / max(float(wanted.abs().max()), 1e-12)


@exercise("loss")
def run_loss(case: Case, made: Any) -> Mapping[str, Any]:
    """Per-row losses of spread logits."""
    batch = case.batch()
    device = batch.event_time.device
    student, teacher = (torch.linspace(*ends, len(batch), device=device) for ends in ((2, -2), (-1, 3)))
    return {"loss": made(student, teacher, batch, torch.ones_like(student))}


@check("loss")
def it_gives_one_loss_per_row(case: Case) -> None:
    """Losses are a tensor [N] with a gradient, also for one row; recdistill reduces, the loss does not."""
    for count in (ROWS, 1):
        rows = sample_rows(case, count)
        values_of(case, rows)
        slope(case, values_of(case, replace(rows, student=rows.student.requires_grad_())), rows)


@check("loss")
def a_row_of_weight_zero_is_absent(case: Case) -> None:
    """A row of weight 0 gives exactly 0 and no gradient, and what its logits are moves no other row's loss."""
    rows = sample_rows(case)
    out = (torch.arange(ROWS) % 4 == 1) | (rows.batch.request_id == 3)  # one row of each request, and all of one
    rows = replace(rows, weight=torch.where(out, 0.0, rows.weight), student=rows.student.requires_grad_())
    values = values_of(case, rows)
    gradient = slope(case, values, rows)
    for what, found in (("a loss", values), ("a gradient", gradient)):
        case.require(
            not bool(found.isnan().any()),
            f"gives {what} of NaN where some rows have weight 0; mask before the softmax or power, not only after, "
            "for 0 * nan is nan; and a softmax over no rows is NaN itself",
        )
    case.require(bool((values[out] == 0).all()), "gives a row of weight 0 a loss other than 0; multiply by the weight")
    case.require(
        bool((gradient[out] == 0).all()),
        "sends gradient to the logit of a row of weight 0; leave such rows out of sums and of softmaxes over a request",
    )
    moved = replace(rows, student=rows.student + 5.0 * out, teacher=rows.teacher - 5.0 * out)
    case.require(
        gap(values_of(case, moved), values) <= TOLERANCE,
        "lets the logits of a row of weight 0 move the loss of other rows; such a row has no teacher's label",
    )


@check("loss")
def it_is_linear_in_the_weights(case: Case) -> None:
    """Losses are linear in positive weights; of a loss that says ``normalised``, only their ratios count."""
    rows = sample_rows(case)
    plain, thrice = values_of(case, rows), values_of(case, replace(rows, weight=3 * rows.weight))
    if case.build().normalised:
        case.require(
            gap(thrice, plain) <= TOLERANCE,
            "says that it is normalised, and weights three times as large change its values",
        )
        return
    other = replace(rows, weight=rows.weight.flip(0))
    both = values_of(case, replace(rows, weight=rows.weight + other.weight))
    case.require(
        gap(thrice, 3 * plain) <= TOLERANCE and gap(both, plain + values_of(case, other)) <= TOLERANCE,
        "is not linear in the weights; return weight * distance. If it divides by the weights of a request by design, "
        "set the class attribute normalised = True",
    )


@check("loss")
def it_is_finite_at_extreme_logits(case: Case) -> None:
    """Values and gradients are finite for logits of +-10,000 and for equal ones, in float32 and in bfloat16."""
    equal = torch.tensor([-2.0, -0.5, 0.0, 0.75, 3.0]).repeat(2, 1).T
    ends = torch.tensor([-1e4, 0.0, 1e4])
    for pairs, advice in ((equal, SLOPE), (torch.cartesian_prod(ends, ends), OVERFLOW)):
        for dtype in (torch.float32, torch.bfloat16):
            student, teacher = pairs.repeat(ROWS, 1)[:ROWS].to(dtype).unbind(1)
            rows = replace(sample_rows(case), student=student.clone().requires_grad_(), teacher=teacher)
            rows = replace(rows, weight=torch.ones(ROWS))
            values = values_of(case, rows)
            for what, found in (("loss", values.detach()), ("gradient", slope(case, values, rows))):
                wrong = ~torch.isfinite(found)
                at = int(wrong.int().argmax())
                case.require(
                    not bool(wrong.any()),
                    f"gives a {what} of {float(found[at])} at student logit {float(student[at]):g}, teacher logit "
                    f"{float(teacher[at]):g} in {str(dtype).removeprefix('torch.')}; {advice}",
                )


SLOPE = (
    "the logits are equal and moderate there, so look for a slope that is infinite at a difference of 0 (a root or a "
    "power below 1, as in |gap|**gamma) and for 0 / 0: add a small number inside the power, or bound the gap from below"
)
OVERFLOW = (
    "use the stable forms of torch.nn.functional (logsigmoid, softplus, binary_cross_entropy_with_logits), not "
    "log(sigmoid(x)), and mask what overflows before it is computed"
)


@check("loss")
def hard_labels_do_not_matter(case: Case) -> None:
    """What the log says of clicks moves no distillation loss; the head strategy adds the hard loss."""
    rows = sample_rows(case)
    batch, values = rows.batch, values_of(case, rows)
    flipped = {
        "labels": replace(batch, labels={task: 1 - label for task, label in batch.labels.items()}),
        "observed": replace(batch, observed={task: ~seen for task, seen in batch.observed.items()}),
    }
    for column, other in flipped.items():
        case.require(
            torch.equal(values_of(case, replace(rows, batch=other)), values),
            f"reads the hard labels: flipping batch.{column} changes its values. The head strategy adds the hard loss, "
            "and weights come from debiasers",
        )


@check("loss")
def requests_do_not_move_each_other(case: Case) -> None:
    """A batch gives the losses that its requests give one by one, so that halves add up to the whole."""
    rows = sample_rows(case)
    whole = values_of(case, rows)
    owner = rows.batch.request_id
    parts = [rows.at(torch.where(owner == request)[0]) for request in sorted(set(owner.tolist()))]
    found = torch.cat([values_of(case, part) for part in parts])
    case.require(
        found.shape == whole.shape and gap(found, whole) <= TOLERANCE,
        "lets rows of other requests in the batch move the loss of a row; group by batch.request_id and normalise "
        "within a request, so that two half batches give what the whole one gives",
    )


@check("loss")
def shuffled_rows_keep_their_losses(case: Case) -> None:
    """The order of rows in the batch does not matter; the rows of a request need not be neighbours."""
    rows = sample_rows(case)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))
    case.require(
        gap(values_of(case, rows.at(order)), values_of(case, rows)[order]) <= TOLERANCE,
        "depends on the order of rows; a request's rows may lie anywhere in the batch: group with "
        "torch.unique(batch.request_id, return_inverse=True)",
    )
