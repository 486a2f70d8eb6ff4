"""How far a teacher's label is to be trusted, per row: by its own certainty, or by how it has been borne out so far."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from recdistill_core.ranks import sum_over_ranks

BINS = 40
#: Logits at which the outer bins begin.
ENDS = 8.0
#: Rows that a bin is taken to have seen, as calibrated as can be, before it has seen any.
PRIOR = 20.0


class Entropy(nn.Module):
    """``w = 1 - H(p_T) / log 2``: 1 where the teacher is certain, 0 where it says one half."""

    def forward(self, teacher: Tensor, valid: Tensor, label: Tensor, observed: Tensor) -> Tensor:
        """``[N]`` weights of the teacher's logits ``[N]``."""
        entropy = functional.softplus(teacher) - teacher * torch.sigmoid(teacher)
        return (1 - entropy / math.log(2)).clamp(0, 1)


class RunningCalibration(nn.Module):
    """``w = min(r, p) / max(r, p)``, where of past rows whose teacher said about ``p`` the share ``r`` was positive.

    "About" is one of 40 bins of the logit. Where the teacher has said twice too much or half too little, its labels
    count half. The batch at hand is weighed by the batches before it, and then counted: its labels move no weight of
    their own. Counts are buffers: a restored checkpoint goes on with them.
    """

    rows: Tensor
    positives: Tensor
    expected: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("rows", "positives", "expected"):
            self.register_buffer(name, torch.zeros(BINS, dtype=torch.float64))

    def forward(self, teacher: Tensor, valid: Tensor, label: Tensor, observed: Tensor) -> Tensor:
        """``[N]`` weights; in training the rows are counted afterwards."""
        p = torch.sigmoid(teacher.double())
        place = ((teacher.clamp(-ENDS, ENDS) + ENDS) * (BINS / (2 * ENDS))).long().clamp(max=BINS - 1)
        total = self.rows[place] + PRIOR
        said, found = (self.expected[place] + PRIOR * p) / total, (self.positives[place] + PRIOR * p) / total
        weight = (torch.minimum(said, found) / torch.maximum(said, found)).to(teacher.dtype)
        if self.training and torch.is_grad_enabled():
            known = (valid & observed).double()
            found = torch.stack([known, known * label.double(), known * p])
            counts = sum_over_ranks(torch.zeros_like(found[:, :1]).repeat(1, BINS).index_add_(1, place, found))
            for total, count in zip((self.rows, self.positives, self.expected), counts, strict=True):
                total += count
        return weight


def confidence(name: str) -> nn.Module | None:
    """The module of that name; None for ``none``."""
    return {"none": None, "entropy": Entropy(), "calibration": RunningCalibration()}[name]
