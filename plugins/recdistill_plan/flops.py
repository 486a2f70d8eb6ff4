"""Floating point operations of an HSTU teacher: those of matrix products, two per multiplication and addition.

A layer of width ``D`` multiplies each token by five ``D x D`` matrices (U, V, Q, K and the output), and for each pair
of a token and an event that it attends to, a query by a key and a weight by a value: ``4 D`` operations. The last layer
computes U, Q and the output only for the tokens that the head reads, and the one before truncated layers only for those
that these read. A backward pass takes twice the forward one.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from recdistill_plan.sizes import Depth, Model, Workload, depths


class Flops(NamedTuple):
    """Operations of one forward pass over one history and its rows."""

    projections: float
    attention: float
    head: float

    @property
    def forward(self) -> float:
        """All."""
        return self.projections + self.attention + self.head

    @property
    def training(self) -> float:
        """Forward and backward, nothing computed twice."""
        return 3 * self.forward


def count(model: Model, work: Workload) -> Flops:
    """The operations for one history of ``work``, in expectation over stochastic length."""
    projections = attention = 0.0
    for share, length in kept(model, work.length, work.rows):
        for depth in depths(model, length, work.rows):
            projections += share * depth.layers * _projections(model, work, depth)
            attention += share * depth.layers * 4 * model.config.width * pairs(model, work, depth)
    return Flops(projections, attention, work.rows * _head(model))


def recomputed(model: Model, work: Workload, checkpointing: str) -> float:
    """Operations for one history that activation checkpointing does a second time.

    ``selective`` keeps what attention gave and repeats the projections; ``full`` repeats the attention, too. Neither
    repeats the output's product, whose result no gradient needs.
    """
    if checkpointing == "none":
        return 0.0
    total = 0.0
    for share, length in kept(model, work.length, work.rows):
        for depth in depths(model, length, work.rows):
            again = _inputs(model, work, depth)
            if checkpointing == "full":
                again += 4 * model.config.width * pairs(model, work, depth)
            total += share * depth.layers * again
    return total


def kept(model: Model, length: int, rows: int) -> list[tuple[float, int]]:
    """``(probability, events kept)`` of a history in training, by stochastic length (arXiv 2402.17152, section 3.3).

    As in :mod:`recdistill_hstu.stochastic` it counts as long as the oldest of its newest ``rows`` rows sees it. Balance
    leaves the expectation.
    """
    alpha, limit = model.config.stochastic_length, model.config.max_length
    most = int((limit**alpha) ** 0.5 + 1e-9) if alpha else limit  # as recdistill_hstu.stochastic rounds it
    known = max(0, length - rows + 1)
    if not alpha or known <= most:
        return [(1.0, length)]
    whole = min(1.0, limit**alpha / known**2)
    return [(whole, length), (1.0 - whole, most + round((length - known) * most / known))]


def seen(model: Model, visible: int) -> int:
    """To how many of the ``visible`` events before it a token attends."""
    recent, oldest = model.config.attend_recent, model.config.attend_oldest
    if not recent or visible <= recent:
        return visible
    return recent + min(oldest, visible - recent)


def pairs(model: Model, work: Workload, depth: Depth) -> int:
    """Pairs of a token and a key in one layer for one history; a candidate attends to itself, too."""
    rows = sum(seen(model, end) + 1 for end in work.ends(depth.length))
    return rows + sum(seen(model, place + 1) for place in range(depth.length - depth.newest, depth.length))


def asked(work: Workload, depth: Depth) -> int:
    """Tokens of one history that a layer computes."""
    return depth.newest + work.rows


def _inputs(model: Model, work: Workload, depth: Depth) -> float:
    """U and Q of the tokens asked for, V and K of all."""
    return 4.0 * model.config.width**2 * (depth.length + work.rows + asked(work, depth))


def _projections(model: Model, work: Workload, depth: Depth) -> float:
    return _inputs(model, work, depth) + 2.0 * model.config.width**2 * asked(work, depth)


def _head(model: Model) -> float:
    """Of one row."""
    config, width = model.config, model.head_width()
    cross = 2 * width * config.cross_rank if model.narrow_crosses() else width * width
    sizes = [width + config.width, *config.hidden]
    deep = sum(before * after for before, after in pairwise(sizes))
    return 2.0 * (config.cross_layers * cross + deep + (width + sizes[-1]) * len(model.tasks))
