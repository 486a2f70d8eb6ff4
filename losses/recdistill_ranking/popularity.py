"""Pairs of rows of like popularity: UnKD."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recdistill_core.batch import Batch
from recdistill_ranking.base import RankingLoss
from recdistill_ranking.requests import Requests

#: The groups are made anew whenever this many times as many impressions have been counted as when they were made.
GROWTH = 1.1


class UnKD(RankingLoss):
    """Expected pairwise loss within groups of like popularity (UnKD; Chen et al. 2023, arXiv 2211.14729).

    The paper draws pairs of a user's items in one popularity group, each item with a probability proportional to
    ``exp(-r / decay)``, ``r`` the place in the teacher's order of the group, and takes ``-log sigmoid(z_S+ - z_S-)``
    with the item on top that the teacher places higher. This is that loss's expectation over the pairs of a request:
    every pair has its probability as a factor, half of it with each of its rows. A popular row is never compared with
    a rare one, so the teacher's taste for popular items is not handed on. Rows of equal teacher logits have no order
    and are no pair.

    Popularity is the number of training rows of an item that were seen *before* the batch, so nothing of the future
    and nothing of the neighbours decides how a row is grouped; it is counted in training mode only and lies in the
    checkpoint. Groups hold equal shares of all impressions. Before the first batch all items are one group.

    Args:
        num_items: size of the item vocabulary, >= 1.
        groups: how many groups, >= 1.
        decay: the paper's mu > 0, in places.
    """

    seen: Tensor
    group: Tensor
    counted: Tensor

    def __init__(self, num_items: int, groups: int = 4, decay: float = 20.0) -> None:
        super().__init__()
        self.groups, self.decay = groups, decay
        self._counted_last: Tensor | None = None
        self.register_buffer("seen", torch.zeros(num_items, dtype=torch.long))
        self.register_buffer("group", torch.zeros(num_items, dtype=torch.long))
        self.register_buffer("counted", torch.zeros((), dtype=torch.long))

    def forward(self, student_logit: Tensor, teacher_logit: Tensor, batch: Batch, weight: Tensor) -> Tensor:
        """See :meth:`recdistill_ranking.base.RankingLoss.forward`; in training mode the batch is counted afterwards."""
        values = super().forward(student_logit, teacher_logit, batch, weight)
        if self.training and batch.example_id is not self._counted_last:  # two heads see one batch
            self._counted_last = batch.example_id
            # what was not shown has no outcome, and counts for nothing
            shown = list(batch.observed.values())
            self._count(batch.item_id[torch.stack(shown).any(0)] if shown else batch.item_id)
        return values

    def distance(self, student: Tensor, teacher: Tensor, requests: Requests, batch: Batch) -> Tensor:
        """``[N]`` losses, each the half of its row's pairs."""
        cells = requests.split(self.group[batch.item_id])
        chance = torch.exp(-cells.rank(teacher).to(student) / self.decay)
        one, two = cells.pairs()
        order = (teacher[one] - teacher[two]).sign()
        together = chance[one] * chance[two] * order.abs()
        total = together.new_zeros(cells.count).index_add(0, cells.index[one], together)[cells.index[one]]
        losses = (
            together / torch.where(total > 0, total, 1.0) * functional.softplus(order * (student[two] - student[one]))
        )
        return torch.zeros_like(student).index_add(0, one, losses)

    @torch.no_grad()
    def _count(self, item_id: Tensor) -> None:
        self.seen.index_add_(0, item_id, torch.ones_like(item_id))
        total = int(self.seen.sum())
        if total > GROWTH * int(self.counted):
            self.counted.fill_(total)
            self.group.copy_(popularity_groups(self.seen, self.groups))


def popularity_groups(seen: Tensor, groups: int) -> Tensor:
    """``[V]`` int64 in ``[0, groups)``: 0 holds the rarest items; groups have about equal shares of the impressions.

    Args:
        seen: ``[V]`` int64 impressions of each item, not all 0.
        groups: how many groups, >= 1.
    """
    order = seen.sort(stable=True).indices
    ahead = seen[order].cumsum(0) - seen[order]
    found = torch.empty_like(order)
    # the middle of an item's own impressions decides, so that one very popular item is in the last group
    found[order] = (groups * (2 * ahead + seen[order]) // (2 * int(seen.sum()))).clamp(max=groups - 1)
    return found
