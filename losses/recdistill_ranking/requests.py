"""Rows grouped by request: sums, softmaxes, ranks and pairs without a loop over requests.

Axes: ``N`` rows, ``G`` requests, ``P`` ordered pairs of rows. A row of weight 0 is no member of its request.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: The place of a row that is absent: behind every other one, in batches of any size.
NOWHERE = 2**62


class Requests:
    """The requests of a batch, by value: their rows need not be neighbours.

    Args:
        request_id: ``[N]`` int64.
        member: ``[N]`` bool, false where a row is absent.

    Attributes:
        index: ``[N]`` int64 in ``[0, G)``. count: ``G``. size: ``[N]`` members of each row's request.
    """

    def __init__(self, request_id: Tensor, member: Tensor) -> None:
        known, self.index = torch.unique(request_id, return_inverse=True)
        self.count = len(known)
        self.member = member
        self.size = self.total(member.long())[self.index]

    def total(self, values: Tensor) -> Tensor:
        """``[G]`` sums of ``values [N]``."""
        return values.new_zeros(self.count).index_add(0, self.index, values)

    def log_total(self, logit: Tensor, inside: Tensor) -> Tensor:
        """``[G]`` logarithms of the sums of ``exp(logit [N])`` over the rows ``inside [N]``.

        The most negative number where there is none, which is finite, so that no gradient is NaN.
        """
        none = torch.finfo(logit.dtype).min
        kept = torch.where(inside, logit, none)
        highest = kept.new_full((self.count,), none).scatter_reduce(0, self.index, kept.detach(), "amax")
        # masked before exp as well as after it: a row outside may be far above the highest one inside
        shifted = torch.where(inside, kept - highest[self.index], 0.0)
        total = self.total(torch.where(inside, shifted.exp(), 0.0))
        some = total > 0
        return torch.where(some, torch.where(some, total, 1.0).log() + highest, none)

    def log_softmax(self, logit: Tensor, inside: Tensor) -> Tensor:
        """``[N]`` log shares among the rows ``inside [N]`` of each request; 0 for other rows."""
        total = self.log_total(logit, inside)[self.index]
        return torch.where(inside, logit - torch.where(inside, total, 0.0), 0.0)

    def rank(self, logit: Tensor) -> Tensor:
        """``[N]`` int64 places in the request by falling ``logit``, 0 = highest; ``NOWHERE`` for rows not in it.

        Among equal logits the row that stands first in the batch is first.
        """
        owner = torch.where(self.member, self.index, self.count)
        order = logit.detach().sort(descending=True, stable=True).indices
        order = order[owner[order].sort(stable=True).indices]
        sizes = torch.bincount(owner, minlength=self.count + 1)
        start = sizes.cumsum(0) - sizes
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device) - start[owner[order]]
        return torch.where(self.member, place, NOWHERE)

    def split(self, group: Tensor) -> Requests:
        """Every request cut into parts: the rows of one value of ``group [N]`` int64 >= 0 make one."""
        width = int(group.max()) + 1 if len(group) else 1
        return Requests(self.index * width + group, self.member)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """``([P], [P])`` rows of all ordered pairs of two different members of one request."""
        rows = torch.nonzero(self.member).squeeze(1)
        rows = rows[self.index[rows].sort(stable=True).indices]
        sizes = torch.bincount(self.index[rows], minlength=self.count)
        start, mine = (sizes.cumsum(0) - sizes)[self.index[rows]], sizes[self.index[rows]]
        first = torch.arange(len(rows), device=rows.device).repeat_interleave(mine)
        begin = (mine.cumsum(0) - mine)[first]
        second = start[first] + torch.arange(len(first), device=rows.device) - begin
        different = first != second
        return rows[first[different]], rows[second[different]]
