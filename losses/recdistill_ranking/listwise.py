"""Losses that match the shares of a request's rows: ListNet on logits, CLID on probabilities, and RCE-KD."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recdistill_core.batch import Batch
from recdistill_ranking.base import RankingLoss, divergence
from recdistill_ranking.requests import Requests


class ListNet(RankingLoss):
    """``tau^2 [P (log P - log Q) - P + Q]``, ``P = softmax(z_T / tau)``, ``Q = softmax(z_S / tau)``.

    Over a request of equal weights this is ``tau^2`` times the top-one cross-entropy of ListNet (Cao et al. 2007,
    ICML) less the teacher's entropy, and ``d/dz_S = tau (Q - P)``. A shift of a request's logits changes nothing:
    probabilities are not learnt.

    Args:
        temperature: ``tau`` > 0.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def distance(self, student: Tensor, teacher: Tensor, requests: Requests, batch: Batch) -> Tensor:
        """``[N]`` row by row divergences."""
        shares = (requests.log_softmax(side / self.temperature, requests.member) for side in (student, teacher))
        return self.temperature**2 * divergence(*shares)


class CLID(RankingLoss):
    """``m [P (log P - log Q) - P + Q]``, ``P = p_T / sum p_T``, ``Q = p_S / sum p_S``, ``p = sigmoid(z)`` (CLID).

    Gui et al. 2024, arXiv 2312.08727: the cross-entropy of session-normalised probabilities. ``m`` is 1 as published,
    or the request's ``sum p_T``.

    Args:
        mass: whether ``m`` is the teacher's expected number of positives in the request. The expected gradient then
            is 0 at the student's true probabilities whatever the student does not know of a row; with 1 it is so
            where what it does not know multiplies all probabilities of a request alike.
    """

    def __init__(self, mass: bool = False) -> None:
        super().__init__()
        self.mass = mass

    def distance(self, student: Tensor, teacher: Tensor, requests: Requests, batch: Batch) -> Tensor:
        """``[N]`` row by row divergences."""
        student, teacher = functional.logsigmoid(student), functional.logsigmoid(teacher)
        values = divergence(*(requests.log_softmax(side, requests.member) for side in (student, teacher)))
        if not self.mass:
            return values
        return values * requests.total(torch.where(requests.member, teacher.exp(), 0.0))[requests.index]


class RejuvenatedCE(RankingLoss):
    """``(1 - gamma) L_1 + gamma L_2`` (RCE-KD; Zhu and Zhang 2025, arXiv 2509.20989).

    ``L_1`` is ListNet over the student's top ``k`` rows of the request; ``L_2`` over those of the teacher's top ``k``
    that the student does not have in its own, with all rows that the student places above one of them: cross-entropy
    bounds NDCG only over a set that holds whatever the student places above any of its rows. The paper samples those
    rows out of all items; a request is short, so all are taken and nothing is drawn.
    ``gamma = exp(-beta |both top k| / |the teacher's top k|)`` gives way to ``L_1`` as the student learns.

    Args:
        k: how many rows are top, >= 1; a request with no more rows has no ``L_2``.
        beta: > 0.
        temperature: ``tau`` > 0 of both softmaxes.
    """

    def __init__(self, k: int = 5, beta: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.k, self.beta, self.list = k, beta, ListNet(temperature)

    def distance(self, student: Tensor, teacher: Tensor, requests: Requests, batch: Batch) -> Tensor:
        """``[N]`` row by row divergences of both parts."""
        place = requests.rank(student)
        wanted, found = requests.rank(teacher) < self.k, place < self.k
        missed = wanted & ~found
        last = requests.total(missed.long()).new_full((requests.count,), -1)
        last = last.scatter_reduce(0, requests.index, torch.where(missed, place, -1), "amax")[requests.index]
        closed = requests.member & (place <= last)
        overlap = requests.total((wanted & found).to(student)) / requests.total(wanted.to(student)).clamp(min=1)
        gamma = torch.exp(-self.beta * overlap)[requests.index]
        return (1 - gamma) * self._within(student, teacher, requests, found) + gamma * self._within(
            student, teacher, requests, closed
        )

    def _within(self, student: Tensor, teacher: Tensor, requests: Requests, inside: Tensor) -> Tensor:
        tau = self.list.temperature
        shares = (requests.log_softmax(side / tau, inside) for side in (student, teacher))
        return torch.where(inside, tau**2 * divergence(*shares), 0.0)
