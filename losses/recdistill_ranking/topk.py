"""Losses on the teacher's best rows of a request: Ranking Distillation and the relaxed ranking loss of DE-RRD."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recdistill_core.batch import Batch
from recdistill_ranking.base import RankingLoss
from recdistill_ranking.requests import Requests


class RankingDistillation(RankingLoss):
    """``-v_r log p_S`` of the teacher's top ``k`` rows, ``r`` = 1 at the top (RD).

    Tang and Wang 2018, arXiv 1809.07428. ``v_r`` is proportional to ``exp(-r / decay)`` and, with ``mu`` > 0, to
    ``tanh(max(mu (r_S - r), 0))`` as well, where ``r_S`` is the row's place in the student's order: rows that the
    student places as high already have no weight. The ``v`` of a request sum to 1, or are all 0. The paper estimates
    ``r_S`` from sampled items; inside of a request it is counted. Other rows have no loss: the hard loss must hold
    them down.

    Args:
        k: how many rows are positives, >= 1.
        decay: the paper's lambda > 0, in places.
        mu: >= 0; 0 leaves the second factor out.
    """

    def __init__(self, k: int = 5, decay: float = 5.0, mu: float = 0.0) -> None:
        super().__init__()
        self.k, self.decay, self.mu = k, decay, mu

    def distance(self, student: Tensor, teacher: Tensor, requests: Requests, batch: Batch) -> Tensor:
        """``[N]`` losses, 0 below the top ``k``."""
        place = requests.rank(teacher)
        value = torch.where(place < self.k, torch.exp(-place.to(student) / self.decay), 0.0)
        if self.mu > 0:
            value = value * torch.tanh(self.mu * (requests.rank(student) - place).clamp(min=0).to(student))
        total = requests.total(value)[requests.index]
        return -value / torch.where(total > 0, total, 1.0) * functional.logsigmoid(student)


class RelaxedRanking(RankingLoss):
    """``-log`` of the relaxed permutation likelihood (RRD of DE-RRD; Kang et al. 2020, arXiv 2012.04357).

    With the ``K`` rows that the teacher places highest in its order and ``L`` uninteresting ones, the row of place
    ``r`` has ``log(sum_{j = r..K} exp z_S[j] + sum_{uninteresting} exp z_S) - z_S[r]``: it must beat what stands below
    it, and the uninteresting rows have no order among themselves. The paper samples both sets out of all items; here
    the interesting rows are the first ``K`` of the request and the uninteresting ones its last ``L`` others. A
    likelihood of an order is never largest at a finite student, so unequal weights change how fast rows part.

    Args:
        interesting: ``K`` >= 1.
        uninteresting: ``L`` >= 0.
    """

    def __init__(self, interesting: int = 5, uninteresting: int = 20) -> None:
        super().__init__()
        self.interesting, self.uninteresting = interesting, uninteresting

    def distance(self, student: Tensor, teacher: Tensor, requests: Requests, batch: Batch) -> Tensor:
        """``[N]`` losses, 0 for rows that are not interesting."""
        place = requests.rank(teacher)
        top = place < self.interesting
        low = requests.member & ~top & (place >= requests.size - self.uninteresting)
        width = int(requests.size.clamp(1, self.interesting).max()) if len(place) else 1
        # far below any logit and finite: -inf has no gradient in logcumsumexp
        none = torch.finfo(student.dtype).min / 4
        lists = student.new_full((requests.count, width), none)
        lists = lists.index_put((requests.index[top], place[top]), student[top])
        below = lists.flip(1).logcumsumexp(1).flip(1)
        rest = requests.log_total(student, low).clamp(min=none)
        total = torch.logaddexp(below, rest[:, None])
        mine = torch.zeros_like(student).index_put((top.nonzero(as_tuple=True)), total[requests.index[top], place[top]])
        return torch.where(top, mine - student, 0.0)
