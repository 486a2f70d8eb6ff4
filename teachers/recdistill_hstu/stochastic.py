"""Stochastic length (HSTU, arXiv 2402.17152, section 3.3): in training, long histories are thinned at random.

``T`` is an area, the square of a length: histories of more than ``sqrt(T)`` events are left whole with probability
``T / n ** 2`` and thinned to ``sqrt(T)`` otherwise. The published ``T`` is ``limit ** alpha``.

Balanced (ULTRA-HSTU, arXiv 2602.16986, evens out the load of the ranks; how is not published), each rank chooses ``T``
so that the expected areas of all ranks are equal and have the published sum. The histories that stay whole are drawn
systematically, which keeps each one's probability and takes most variance out of their number, and the others are
thinned to the length at which the rank has the area that it expected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from recdistill_core.batch import History
from recdistill_core.ranks import rank_and_world, sum_over_ranks

#: The least share of its area to which a rank thins where histories that stayed whole have used up what it expected.
LEAST = 0.25


def stochastic_length(history: History, limit: int, alpha: float, *, balance: bool = False) -> History:
    """``history`` with some of the long ones thinned; draws from torch's generator of its device.

    What is kept depends on lengths alone; in a batch a history reaches to the newest of its rows there. Each event of a
    thinned history is kept with the same probability, and a row sees those of the events before it that are kept.

    Args:
        history: of a batch.
        limit: ``N``, the longest history there can be.
        alpha: in (1, 2]; at 2 nothing is thinned.
        balance: even out the load, also between the processes of a distributed run, all of which must then call this.
    """
    area = limit**alpha
    return thin(history, balanced_area(history.lengths, area) if balance else area, balance=balance)


def thin(history: History, area: float, *, balance: bool) -> History:
    """``history`` with histories longer than the root of ``area`` thinned or left whole, as the module says."""
    lengths, device = history.lengths, history.offsets.device
    square = lengths.double().square()
    chance = (area / square.clamp(min=1.0)).clamp(max=1.0)
    whole = systematic(chance) if balance else torch.rand(len(lengths), device=device) < chance
    if balance:
        fixed = whole | (square <= area)
        left = expected_area(lengths, area) - float(square[fixed].sum())
        area = max(area_of(square[~fixed], left), area * LEAST)
    most = int(area**0.5 + 1e-9)  # the square root of an area that is a square, too
    thinned = (lengths > most) & ~whole
    if not bool(thinned.any()):
        return history
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    order = (2.0 * owner + torch.rand(len(owner), dtype=torch.float64, device=device)).argsort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=device) - history.offsets[owner[order]]
    keep = ~thinned[owner] | (rank < most)
    before = torch.nn.functional.pad(keep.cumsum(0), (1, 0))  # kept events before each place
    start = history.offsets[history.row_to_history]
    return replace(
        history,
        events={name: column[keep] for name, column in history.events.items()},
        offsets=before[history.offsets],
        row_end=before[start + history.row_end] - before[start],
    )


def expected_area(lengths: Tensor, area: float) -> float:
    """Expected sum of the squares of ``lengths [U]`` after thinning to ``area``: what attention costs."""
    square = lengths.double().square()
    chance = (area / square.clamp(min=1.0)).clamp(max=1.0)
    return float((chance * square + (1 - chance) * area).sum())


def balanced_area(lengths: Tensor, area: float) -> float:
    """The area at which this process expects the mean of what all processes expect at ``area``.

    Without a distributed run that is ``area`` itself. A process whose histories are too short for its share keeps all
    of them whole.
    """
    world = rank_and_world()[1]
    if world == 1:
        return area
    expected = torch.tensor([expected_area(lengths, area)], dtype=torch.float64)
    return area_for(lengths, float(sum_over_ranks(expected)) / world)


def area_for(lengths: Tensor, target: float) -> float:
    """The area at which ``lengths [U]`` cost ``target`` in expectation, or the smallest that leaves all whole."""
    return _solve(lambda area: expected_area(lengths, area), target, float(lengths.max()) ** 2 if len(lengths) else 1.0)


def area_of(squares: Tensor, target: float) -> float:
    """The area to which histories of ``squares [U]`` are cut so that they cost ``target``, or the largest of them."""
    highest = float(squares.max()) if len(squares) else 1.0
    return _solve(lambda area: float(squares.clamp(max=area).sum()), target, highest)


def _solve(cost: Callable[[float], float], target: float, high: float) -> float:
    """Where ``cost``, which rises with the area, is ``target`` between 1 and ``high``, or the nearer end."""
    low = 1.0
    for _ in range(60):  # sixty halvings find it to the last bit that matters
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < target else (low, middle)
    return max(1.0, high)


def systematic(chance: Tensor) -> Tensor:
    """``[U]`` bool, true with probability ``chance [U]``; the number of the true ones is within 1 of its expectation.

    One uniform number decides for all, in order of their chances (Madow's systematic sampling), so that about as many
    long histories as short ones are true in every draw.
    """
    order = chance.argsort(stable=True)
    passed = chance[order].double().cumsum(0) + torch.rand(1, dtype=torch.float64, device=chance.device)
    drawn = passed.floor() > torch.nn.functional.pad(passed[:-1], (1, 0), value=0.0).floor()
    chosen = torch.empty_like(drawn)
    chosen[order] = drawn
    return chosen
