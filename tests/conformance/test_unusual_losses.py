"""Losses that look unlike the shipped ones and keep the contract: no check may fail them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from wrong import Plain

from recdistill_core import Batch, Component
from recdistill_core.interfaces import DistillationLoss
from recdistill_core.registry import PluginRecord, Registered
from recdistill_core.testing import checks_for, run_check


def groups(batch: Batch, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Number of each row's request ``[N]`` and ``[G, N]``, true where a row with a label is in the request."""
    request = torch.unique(batch.request_id, return_inverse=True)[1]
    inside = (request == torch.arange(int(request.max()) + 1, device=request.device)[:, None]) & (weight > 0)
    return request, inside


class GeneralisedKL(DistillationLoss):
    """``w (p (log p - log q) - p + q)`` with softmaxes ``p, q`` over a request; a row's is 0 at ``q = p``."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        request, inside = groups(batch, weight)
        sides = [torch.where(inside, side, -1e9) for side in (student_logit, teacher_logit.detach())]
        student, teacher = (side.log_softmax(1)[request, torch.arange(len(side[0]))] for side in sides)
        distance = teacher.exp() * (teacher - student) - teacher.exp() + student.exp()
        return torch.where(weight > 0, weight * distance, 0 * student_logit)


class TopOne(DistillationLoss):
    """Only the row that the teacher likes best in its request has a loss."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        request, inside = groups(batch, weight)
        best = torch.where(inside, teacher_logit, -torch.inf).max(1).values[request]
        logs = torch.where(inside, student_logit, -1e9).log_softmax(1)[request, torch.arange(len(request))]
        return torch.where((teacher_logit == best) & (weight > 0), -weight * logs, 0 * student_logit)


class Pairwise(DistillationLoss):
    """Logistic loss on pairs of a request, in the teacher's order, each divided by the row's number of pairs."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        request, inside = groups(batch, weight)
        pair = inside[request] & (weight > 0)[:, None]
        order = (teacher_logit[:, None] - teacher_logit).sign().detach()
        losses = functional.softplus(-order * (student_logit[:, None] - student_logit)) * order.abs()
        return weight * torch.where(pair, losses, 0.0).sum(1) / pair.sum(1).clamp(min=1)


class SelfNormalised(DistillationLoss):
    """Squared distance, averaged in each request with the weights."""

    normalised = True

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        request = torch.unique(batch.request_id, return_inverse=True)[1]
        total = weight.new_zeros(int(request.max()) + 1).index_add(0, request, weight)[request]
        share = torch.where(total > 0, weight / torch.where(total > 0, total, 1.0), 0.0)
        return share * (student_logit - teacher_logit.detach()).square()


class Centred(DistillationLoss):
    """Keeps a running mean of the teacher's logits, which moves in training, and a scale that trains along."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        teacher = teacher_logit.detach()
        values = weight * (self.scale * student_logit - teacher + self.mean).square()
        if bool((weight > 0).any()):
            self.mean.lerp_(teacher[weight > 0].mean().float(), 0.01)
        return values


class Dropping(DistillationLoss):
    """Leaves out a fifth of the rows at random, the same ones for all batches of a size."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        kept = (batch.example_id * 7919) % 5 != torch.randint(5, ())
        return torch.where(kept, weight * (student_logit - teacher_logit.detach()).abs(), 0 * student_logit)


class Margin(DistillationLoss):
    """Hinge on the teacher's sign; its gradient is not 0 where the logits agree."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return weight * torch.relu(2.0 - teacher_logit.sign() * student_logit).square()


class Gaussian(DistillationLoss):
    """Negative log density, which can be negative."""

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        return weight * ((student_logit - teacher_logit.detach()).square() / 2 - 1.0)


NEEDS: dict[type[DistillationLoss], frozenset[str]] = dict.fromkeys(
    (GeneralisedKL, TopOne, Pairwise, SelfNormalised), frozenset({"request_groups"})
)


@pytest.mark.parametrize("loss", [*NEEDS, Centred, Dropping, Margin, Gaussian], ids=lambda loss: loss.__name__)
def test_a_legal_loss_passes(loss: type[DistillationLoss]) -> None:
    def build(config: Any, context: Any) -> DistillationLoss:
        return loss()

    component = Component("unusual", Plain, build, "Unusual", needs=NEEDS.get(loss, frozenset()), api_version=1)
    entry = Registered("loss", component, PluginRecord("unusual", "rd-unusual", "1.0", module="recdistill_soft"))
    outcomes = [run_check(entry, check) for check in checks_for(entry)]
    assert {(found.check.name, found.detail) for found in outcomes if found.status != "passed"} == set()
