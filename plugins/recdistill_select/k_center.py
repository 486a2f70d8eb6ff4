"""K-Center-Greedy: examples that lie far apart, so that every other one is near to a chosen one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recdistill_core.sampler import Candidates
from recdistill_select import KCenterConfig
from recdistill_select.points import Points, Rows, deal, prepared


class KCenterSampler:
    """Farthest-first traversal (Gonzalez 1985; for choosing training data Sener and Savarese, arXiv 1708.00489).

    The first example is drawn; each next one is the one farthest from all chosen before. In one part the largest
    distance of an example to its nearest chosen one is at most twice the smallest that any choice of the size reaches.

    With several parts each part is a random sample of all examples and is traversed by itself, which costs
    ``O(budget * partition_rows * D)`` in place of ``O(budget * N * D)``. Given up: the bound holds within a part only,
    and near-equal examples of different parts may both be chosen. Parts are random and not clusters, because an equal
    share of the budget per row of a cluster would choose in proportion to density, which is what ``random`` does.

    Args:
        config: see :class:`recdistill_select.KCenterConfig`.
        progress: told (examples chosen, budget) after each part.
    """

    def __init__(self, config: KCenterConfig, progress: Callable[[int, int], None] | None = None) -> None:
        self.config = config
        self.progress = progress or (lambda done, total: None)

    def select(self, candidates: Candidates, budget: int, seed: int) -> Rows:
        """See :meth:`recdistill_core.sampler.Sampler.select`; the choices of all parts take turns, in proportion.

        Raises:
            DataError: for an embedding that is not ``[N, D]`` and finite.
        """
        points = prepared(candidates.embedding, len(candidates), self.config.standardise, "sampler 'k_center'")
        generator = np.random.default_rng(seed)
        parts = deal(len(points), self.config.partition_rows, generator)
        shares = _shares(budget, [len(part) for part in parts])
        chosen, turns, done = [], [], 0
        for part, share in zip(parts, shares, strict=True):
            first = int(generator.integers(len(part)))
            chosen.append(part[farthest_first(points[part], share, first)])
            turns.append((np.arange(share) + 0.5) / len(part))
            done += share
            self.progress(done, budget)
        return np.concatenate(chosen)[np.argsort(np.concatenate(turns), kind="stable")]


def farthest_first(points: Points, count: int, first: int) -> Rows:
    """``[count]`` distinct positions in ``points [N, D]``, each the farthest from those before; ties: the lowest.

    Costs ``O(count * N * D)``. Squared distances are taken as ``|x|^2 + |c|^2 - 2xc`` in float32, so examples nearer
    to each other than about 1e-3 of their norm count as equal.
    """
    order = np.empty(count, np.int64)
    norms = np.einsum("nd,nd->n", points, points)
    nearest = np.full(len(points), np.inf, np.float32)
    current = first
    for place in range(count):
        order[place] = current
        to_current = norms + norms[current] - 2.0 * (points @ points[current])
        np.minimum(nearest, np.maximum(to_current, 0.0), out=nearest)
        nearest[current] = -1.0  # below every distance: never chosen again
        current = int(nearest.argmax())
    return order


def _shares(budget: int, sizes: list[int]) -> list[int]:
    """``budget`` in proportion to ``sizes``; what rounding leaves goes to the largest remainders, earlier first."""
    total = sum(sizes)
    shares = [budget * size // total for size in sizes]
    rest = sorted(range(len(sizes)), key=lambda part: (-(budget * sizes[part] % total), part))
    for part in rest[: budget - sum(shares)]:
        shares[part] += 1
    return shares
