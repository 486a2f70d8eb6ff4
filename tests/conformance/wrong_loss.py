"""Losses that break what a loss must keep, each as an author might."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from wrong import Wrong, wrong

from recdistill_core import Batch
from recdistill_core.interfaces import DistillationLoss


class Loss(DistillationLoss):
    """Weighted distance of each row's logits."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return (student - teacher).square()

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return weight * self.distance(student_logit, teacher_logit.detach(), batch)


class Reducing(Loss):
    """Takes the mean itself."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return super().forward(student_logit, teacher_logit, batch, weight).mean()


class Squeezing(Loss):
    """Works for a batch, not for one row."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return super().forward(student_logit[:, None], teacher_logit[:, None], batch, weight[:, None]).squeeze()


class Broadcasting(Loss):
    """Compares a column with a row."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return (student[:, None] - teacher).square()


class Elsewhere(Loss):
    """Moves its answer to another device."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return super().forward(student_logit, teacher_logit, batch, weight).to("meta")


class Offset(Loss):
    """Adds a constant to every row, absent ones included."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return super().forward(student_logit, teacher_logit, batch, weight) + 0.1


def per_request(batch: Batch) -> Tensor:
    """``[N, N]``: 1 where two rows share a request."""
    return (batch.request_id[:, None] == batch.request_id).double()


class OverAbsentRows(Loss):
    """Distance from the teacher plus what the mean logits of the request differ by, rows without a label included."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        same = per_request(batch).to(student)
        return (student - teacher).square() + (same @ (student - teacher) / same.sum(1)).square()


class TeacherOfAbsentRows(OverAbsentRows):
    """As above with the student's mean detached, so that only the placeholder of the teacher's label is let in."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        same = per_request(batch).to(student)
        return (student - teacher - same @ teacher / same.sum(1)).square()


class Squared(Loss):
    """Weights both factors of the square."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return (weight * (student_logit - teacher_logit.detach())).square()


class SaysNormalised(Loss):
    """Says that it divides by weights, and does not."""

    normalised = True


class LogOfSigmoid(Loss):
    """Cross-entropy as the textbook writes it."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        target = torch.sigmoid(teacher)
        return -target * torch.sigmoid(student).log() - (1 - target) * (1 - torch.sigmoid(student)).log()


class OwnSoftplus(Loss):
    """A softplus that guards its values and not its gradient: 0 * inf behind torch.where."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        apart = (student - teacher).abs()
        return torch.where(apart < 50, torch.log1p(torch.exp(apart)), apart)


class Detached(Loss):
    """A focal factor that forgets its own gradient."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return (student - teacher).detach().abs() * (student - teacher).square()


class SinglePrecision(Loss):
    """Narrows what it is given."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return (student.float() - teacher.float()).square()

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return super().forward(student_logit, teacher_logit, batch, weight.float())


class TeachesTheTeacher(Loss):
    """Forgets to detach."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return weight * (student_logit - teacher_logit).square()


class DividesByWeights(Loss):
    """Normalises by a sum that can be 0."""

    normalised = True

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return super().forward(student_logit, teacher_logit, batch, weight) / weight.sum()


class ZerosForNothing(Loss):
    """Saves work where no row counts."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        if not bool(weight.any()):
            return torch.zeros_like(student_logit)
        return super().forward(student_logit, teacher_logit, batch, weight)


class SlopeForNothing(Loss):
    """Adds a term whose value is 0 and whose gradient is not."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return super().forward(student_logit, teacher_logit, batch, weight) + student_logit - student_logit.detach()


class OnlyRightTeachers(Loss):
    """Leaves out the rows on which the teacher disagrees with the click."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        right = (teacher > 0) == (batch.labels["click"] > 0)
        return super().distance(student, teacher, batch) * (0.5 + right.to(student))


class OnlyObserved(Loss):
    """Leaves out the rows whose click is not known yet."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return super().distance(student, teacher, batch) * batch.observed["click"]


class ByPosition(Loss):
    """Discounts by the position without asking for one."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        assert batch.position is not None
        return super().distance(student, teacher, batch) / torch.log2(2.0 + batch.position)


class ByRequest(Loss):
    """Centres logits in each request without saying that it needs requests."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        same = per_request(batch).to(student)
        difference = student - teacher
        return (difference - same @ difference / same.sum(1)).square() + difference.square()


class Standardising(Loss):
    """Standardises both sides over the batch."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        sides = [(side - side.mean()) / (side.std(correction=0) + 0.1) for side in (student, teacher)]
        return (sides[0] - sides[1]).square()


class Neighbours(Loss):
    """Takes the next row for one of the same request."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        following = (torch.arange(len(student)) + 1) % len(student)
        same = batch.request_id == batch.request_id[following]
        return (student - teacher).square() + same * ((student - teacher)[following]).square()


class ListNet(Loss):
    """Softmax cross-entropy over a request, whose rows weigh their share of the target. Smallest at ``q ~ w p``."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        same = per_request(batch).bool()
        logs, target = (torch.where(same, side, -1e9).log_softmax(1).diagonal() for side in (student, teacher))
        return target.exp() * (target - logs)


class ScalesWeights(Loss):
    """Takes three times the weight, in place."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return super().forward(student_logit, teacher_logit, batch, weight.mul_(3))


class Probabilities(Loss):
    """Turns the teacher's logits into probabilities where they are."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return super().forward(student_logit.sigmoid(), teacher_logit.sigmoid_(), batch, weight)


class Clamping(Loss):
    """Bounds logits in place, none of which is that large so far."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return super().forward(student_logit, teacher_logit.clamp_(-30, 30), batch, weight)


class NoReturn(Loss):
    """Forgets to return."""

    def forward(self, *given: Any) -> Any:
        super().forward(*given)


class Array(Loss):
    """Answers with what it computed in numpy."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Any:
        return super().forward(student_logit.detach(), teacher_logit, batch, weight).numpy()


class ThroughNumpy(Loss):
    """Computes in numpy and comes back."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return torch.from_numpy((student.numpy() - teacher.numpy()) ** 2)


class NoGradient(Loss):
    """Detaches both sides."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return super().distance(student.detach(), teacher, batch)


class OwnScale(NoGradient):
    """Detaches both sides and has a gradient all the same, for a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return self.scale * super().distance(student, teacher, batch)


class Focal(Loss):
    """Cross-entropy where the probabilities differ, with a root whose slope is infinite where they do not."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        target = torch.sigmoid(teacher)
        apart = (torch.sigmoid(student) - target).abs()
        return apart.sqrt() * functional.binary_cross_entropy_with_logits(student, target, reduction="none")


class SoftmaxOfNone(Loss):
    """Takes rows out of a softmax over the request by adding -inf, none of which may be left."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        inside = per_request(batch) * (weight > 0)
        logs = (student_logit + inside.log()).log_softmax(1).diagonal()
        return torch.where(weight > 0, -weight * teacher_logit.sigmoid() * logs, 0.0)


class MaskedAfter(Loss):
    """Divides by the weight and masks what came of it."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return weight * (weight * super().distance(student_logit, teacher_logit.detach(), batch) / weight)


class Repelling(Loss):
    """A likelihood with the sign of a gain."""

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return -functional.softplus(-teacher * student)


def case(check: str, loss: type[DistillationLoss], fault: str, **more: Any) -> Wrong:
    return wrong(check, "loss", lambda config, context: loss(), fault, **more)


LISTS: dict[str, Any] = {"needs": frozenset({"request_groups"})}

WRONG = [
    case("arguments_are_never_changed", ScalesWeights, "changes an argument of forward in place: weight; "),
    case("arguments_are_never_changed", Probabilities, "changes an argument of forward in place: teacher_logit; "),
    case("arguments_are_never_changed", Clamping, "changes an argument of forward in place: teacher_logit; "),
    case("it_gives_one_loss_per_row", NoReturn, "returns None from forward; return a tensor [N]"),
    case("it_gives_one_loss_per_row", Array, "returns a numpy.ndarray from forward; return a torch tensor [N]"),
    case("it_gives_one_loss_per_row", ThroughNumpy, "leaves torch for numpy in forward, which has no gradient"),
    case("it_gives_one_loss_per_row", NoGradient, "passes no gradient to the student's logit"),
    case("it_gives_one_loss_per_row", OwnScale, "passes no gradient to the student's logit"),
    case("it_gives_one_loss_per_row", Reducing, "reduces by itself: returns shape [] for 48 rows"),
    case("it_gives_one_loss_per_row", Squeezing, "reduces by itself: returns shape [] for 1 row;"),
    case("it_gives_one_loss_per_row", Broadcasting, "returns shape [48, 48] for 48 rows; return one value per row"),
    case("it_gives_one_loss_per_row", Elsewhere, "answers on the device meta to rows on the cpu"),
    case(
        "a_row_of_weight_zero_is_absent",
        SoftmaxOfNone,
        "gives a gradient of NaN where some rows have weight 0",
        **LISTS,
    ),
    case("a_row_of_weight_zero_is_absent", MaskedAfter, "gives a loss of NaN where some rows have weight 0"),
    case("a_row_of_weight_zero_is_absent", Offset, "gives a row of weight 0 a loss other than 0"),
    case("a_row_of_weight_zero_is_absent", OverAbsentRows, "sends gradient to the logit of a row of weight 0"),
    case("a_row_of_weight_zero_is_absent", TeacherOfAbsentRows, "move the loss of other rows"),
    case("it_is_linear_in_the_weights", Squared, "is not linear in the weights; return weight * distance"),
    case("it_is_linear_in_the_weights", SaysNormalised, "says that it is normalised"),
    case("it_is_finite_at_extreme_logits", LogOfSigmoid, "gives a loss of nan at student logit -10000"),
    case("it_is_finite_at_extreme_logits", LogOfSigmoid, "in float32; use the stable forms of torch.nn.functional"),
    case("it_is_finite_at_extreme_logits", OwnSoftplus, "gives a gradient of nan at student logit -10000"),
    case("it_is_finite_at_extreme_logits", Focal, "a slope that is infinite at a difference of 0"),
    case("its_gradient_is_right", Detached, "has a gradient that is not that of its values"),
    case("its_gradient_is_right", SinglePrecision, "answers in float32 to float64 logits"),
    case("no_gradient_reaches_the_teacher", TeachesTheTeacher, "use teacher_logit.detach()"),
    case("no_teacher_label_gives_zero", DividesByWeights, "gives nan instead of 0 where no row has a teacher's label"),
    case("no_teacher_label_gives_zero", ZerosForNothing, "has no gradient path to the student"),
    case("no_teacher_label_gives_zero", SlopeForNothing, "has a gradient other than 0 where no row has a teacher's"),
    case("hard_labels_do_not_matter", OnlyRightTeachers, "reads the hard labels: flipping batch.labels"),
    case("hard_labels_do_not_matter", OnlyObserved, "reads the hard labels: flipping batch.observed"),
    case("it_reads_only_the_columns_it_declares", ByPosition, "fails where the batch has no position (AssertionError"),
    case(
        "it_reads_only_the_columns_it_declares",
        ByRequest,
        "answers differently where the batch has no request_groups (loss); declare it in needs",
    ),
    case("requests_do_not_move_each_other", Standardising, "lets rows of other requests in the batch move the loss"),
    case("shuffled_rows_keep_their_losses", Neighbours, "depends on the order of rows"),
    case("it_pulls_the_student_to_the_teacher", Repelling, "does not bring the student to the teacher"),
    case("weights_do_not_move_the_target", ListNet, "a row of e times the weight settles +0.", **LISTS),
]
