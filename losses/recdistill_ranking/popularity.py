"""Pairs of rows of like popularity: UnKD."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recdistill_core.batch import Batch
from recdistill_core.ranks import sum_over_ranks
from recdistill_core.strategy import Paced
from recdistill_ranking.base import RankingLoss
from recdistill_ranking.requests import Requests

#: The groups are made anew whenever this many times as many impressions have been counted as when they were made.
GROWTH = 1.1


class UnKD(RankingLoss, Paced):
    """Expected pairwise loss within groups of like popularity (UnKD; Chen et al. 2023, arXiv 2211.14729).

    The paper draws pairs of a user's items in one popularity group, each item with a probability proportional to
    ``exp(-r / decay)``, ``r`` the place in the teacher's order of the group, and takes ``-log sigmoid(z_S+ - z_S-)``
    with the item on top that the teacher places higher. This is that loss's expectation over the pairs of a request:
    every pair has its probability as a factor, half of it with each of its rows. A popular row is never compared with
    a rare one, so the teacher's taste for popular items is not handed on. Rows of equal teacher logits have no order
    and are no pair.

    Popularity is the number of training rows of an item that were seen *before* the batch, so nothing of the future
    and nothing of the neighbours decides how a row is grouped; :meth:`advance` counts them, and the counts lie in the
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
        self.register_buffer("seen", torch.zeros(num_items, dtype=torch.long))
        self.register_buffer("group", torch.zeros(num_items, dtype=torch.long))
        self.register_buffer("counted", torch.zeros((), dtype=torch.long))

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
    def advance(self, batch: Batch) -> None:
        """Count the batch's rows, those of all processes."""
        shown = list(batch.observed.values())  # what was not shown has no outcome, and counts for nothing
        mine = torch.stack(shown).any(0).long() if shown else torch.ones_like(batch.item_id)
        if batch.share is not None and batch.share.idle:  # its rows are another process's
            mine.zero_()
        self.seen += sum_over_ranks(torch.zeros_like(self.seen).index_add(0, batch.item_id, mine))
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
