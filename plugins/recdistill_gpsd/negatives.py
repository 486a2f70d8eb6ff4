"""Sampled softmax: a target against items drawn at random (Jean et al., arXiv 1412.2007; arXiv 2402.17152, 4.1.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class Drawing:
    """From what negatives are drawn.

    Attributes:
        size: values of the vocabulary; id 0, out of vocabulary, is never drawn.
        weight: ``[size]`` float64 in proportion to which values are drawn, or None for all alike.
        every: take each value once instead of drawing: the full softmax, for a vocabulary that is small.
    """

    size: int
    weight: Tensor | None = None
    every: bool = False

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """``shape`` int64 ids in [1, size), with replacement, on the CPU; with ``every`` all of them."""
        if self.every:
            return torch.arange(1, self.size)
        if self.weight is None:
            return torch.randint(1, self.size, shape, generator=generator)
        # by inversion: torch.multinomial takes no more than 2 ** 24 values
        total = self.weight.cumsum(0)
        point = torch.rand(shape, generator=generator, dtype=torch.float64) * total[-1]
        return torch.searchsorted(total, point, right=True).clamp(max=self.size - 1)

    def log_probability(self, ids: Tensor) -> Tensor | float:
        """``[*]`` float32 natural log of how likely ``ids [*]`` are drawn; 0.0 where all are alike: it cancels."""
        if self.weight is None or self.every:
            return 0.0
        share = (self.weight / self.weight.sum()).to(ids.device)[ids]
        return torch.log(share.clamp(min=1e-12)).float()


def popularity(count: Tensor) -> Drawing:
    """Draws in proportion to how often a value occurs, ``count [size]``; one that never does is never drawn."""
    weight = count.double()
    weight[0] = 0.0
    return Drawing(len(count), weight) if float(weight.sum()) > 0 else Drawing(len(count))


def unit(x: Tensor) -> Tensor:
    """``[*, D]`` at length 1; a vector shorter than 1e-6 stays shorter than 1."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp(min=NORM_EPSILON)


def sampled_softmax(
    query: Tensor,
    table: Tensor,
    target: Tensor,
    negative: Tensor,
    drawing: Drawing,
    *,
    temperature: float = 1.0,
    normalise: bool = True,
    log_q: bool = True,
) -> Tensor:
    """``[M]`` losses ``-log(exp(s_t) / (exp(s_t) + sum_j exp(s_j)))``, over the negatives that are not the target.

    ``s_i = <query, table_i> / temperature - log Q(i)``, with ``Q`` the probability of being drawn, so that frequently
    drawn values are not pushed away for it.

    Args:
        query: ``[M, D]``. table: ``[size, D]`` embeddings. target: ``[M]`` ids.
        negative: ``[K]`` ids for all queries, or ``[M, K]``. drawing: what they were drawn from.
        temperature: > 0. normalise: take cosines. log_q: subtract ``log Q``.
    """
    # functional.embedding: its gradient on the CPU is summed in one order, that of plain indexing is not
    positive = functional.embedding(target, table)
    if normalise:
        query, positive = unit(query), unit(positive)
    hit = (query * positive).sum(1) / temperature
    miss = _products(query, table, negative, normalise) / temperature
    if log_q:
        hit = hit - drawing.log_probability(target)
        miss = miss - drawing.log_probability(negative)
    miss = miss.masked_fill(negative == target[:, None], -torch.inf)
    return torch.logsumexp(torch.cat([hit[:, None], miss], dim=1), dim=1) - hit


def _products(query: Tensor, table: Tensor, negative: Tensor, normalise: bool) -> Tensor:
    """``[M, K]`` products of each query with its negatives."""
    if negative.dim() == 2 and len(table) <= negative.shape[1] * table.shape[1]:
        # fewer numbers than the embeddings of all negatives: score every value, then pick
        return (query @ (unit(table) if normalise else table).T).gather(1, negative)
    other = functional.embedding(negative, table)
    other = unit(other) if normalise else other
    return query @ other.T if negative.dim() == 1 else torch.einsum("md,mkd->mk", query, other)
