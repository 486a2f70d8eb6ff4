"""Stochastic length (HSTU, arXiv 2402.17152, section 3.3): in training, long histories are thinned at random.

``T`` is an area, the square of a length: histories of more than ``sqrt(T)`` events are left whole with probability
``T / n ** 2`` and thinned to ``sqrt(T)`` otherwise. The published ``T`` is ``limit ** alpha``.

``n`` is what the oldest of a history's rows in the batch sees. Were it the length in the batch, which reaches to the
newest of them, how much of its past a row sees would tell how often its user comes back later.

Balanced (ULTRA-HSTU, arXiv 2602.16986, evens out the load of the ranks; how is not published), each rank chooses ``T``
so that the expected areas of all ranks, of those ``n``, are equal and have the published sum. The histories that stay
whole are drawn systematically, which keeps each one's probability and takes most variance out of their number, and the
others are thinned to the length at which the rank has one and the same area in every draw. Where so many stayed whole
that this would take more than :data:`LEAST` allows, that area is lower by as much as makes up for it in the mean.
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
#: Most of the systematic draws that are told apart to balance them.
PARTS = 1024


def stochastic_length(history: History, limit: int, alpha: float, *, balance: bool = False) -> History:
    """``history`` with some of the long ones thinned; draws from torch's generator of its device.

    What is kept depends on lengths alone, and for a row on those that lie before it: a history counts as long as the
    oldest of its rows in the batch sees it. Each event before that row is kept with the same probability; those after
    it, with that probability each for itself; and a row sees those of the events before it that are kept. Balanced,
    lengths of the other histories of the batch, and of the other processes', have a say in how many are kept.

    Args:
        history: of a batch.
        limit: ``N``, the longest history there can be.
        alpha: in (1, 2]; at 2 nothing is thinned.
        balance: even out the load, also between the processes of a distributed run, all of which must then call this.
    """
    area = limit**alpha
    return thin(history, balanced_area(known(history), area) if balance else area, balance=balance)


def known(history: History) -> Tensor:
    """``[U]`` events that the oldest row of each history sees; all of them where it has no row."""
    return history.lengths.scatter_reduce(0, history.row_to_history, history.row_end, "amin")


def thin(history: History, area: float, *, balance: bool) -> History:
    """``history`` with histories longer than the root of ``area`` thinned or left whole, as the module says."""
    length, device = known(history), history.offsets.device
    square = length.double().square()
    chance = (area / square.clamp(min=1.0)).clamp(max=1.0)
    whole, cut = chance == 1.0, area
    long = (~whole).nonzero().flatten()
    if balance and len(long):
        whole[long], cut = even(square[long], area)
    elif not balance:
        whole = torch.rand(len(length), device=device) < chance
    most = int(cut**0.5 + 1e-9)  # the square root of an area that is a square, too
    thinned = (length > most) & ~whole
    if not bool(thinned.any()):
        return history
    lengths = history.lengths
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    draw = torch.rand(len(owner), dtype=torch.float64, device=device)
    place = torch.arange(len(owner), device=device)
    later = place - history.offsets[owner] >= length[owner]
    order = (2.0 * owner + later + draw).argsort()  # in each history first those before its oldest row, at random
    rank = torch.empty_like(order)
    rank[order] = place - history.offsets[owner[order]]
    drawn = torch.where(later, draw * length[owner] < most, rank < most)
    keep = ~thinned[owner] | drawn
    before = torch.nn.functional.pad(keep.cumsum(0), (1, 0))  # kept events before each place
    start = history.offsets[history.row_to_history]
    return replace(
        history,
        events={name: column[keep] for name, column in history.events.items()},
        offsets=before[history.offsets],
        row_end=before[start + history.row_end] - before[start],
    )


def even(squares: Tensor, area: float) -> tuple[Tensor, float]:
    """Which histories of ``squares [U]``, each above ``area``, stay whole, and the area to which the rest is thinned.

    The sum of what is left is :func:`level_of` in every draw, but in those in which more than that stays whole.
    """
    whole = systematic(area / squares, torch.rand(1, dtype=torch.float64, device=squares.device))
    left = level_of(squares.cpu(), area) - float(squares[whole].sum())
    return whole, max(area_of(squares[~whole].cpu(), left), area * LEAST)


def level_of(squares: Tensor, area: float) -> float:
    """The sum that gives all draws the published mean, the sum of ``area + (1 - chance) * area``.

    Of more than :data:`PARTS` histories it is approximate, since it then looks at as many draws, evenly spaced.
    """
    chance = area / squares
    ends = torch.cat([1.0 - chance.sort().values.cumsum(0).frac(), chance.new_tensor([0.0, 1.0])]).sort().values
    if len(ends) > PARTS:
        ends = torch.linspace(0, 1, PARTS, dtype=torch.float64)
    drawn = systematic(chance, (ends[:-1] + ends[1:])[:, None] / 2)  # within two ends every draw is the same
    fixed = torch.where(drawn, squares, area * LEAST).sum(1)
    shares, most = ends.diff(), float(squares.sum())
    return _solve(lambda level: float((shares * fixed.clamp(min=level)).sum()), _expected(squares, area), most)


def expected_area(lengths: Tensor, area: float) -> float:
    """Expected sum of the squares of ``lengths [U]`` after thinning to ``area``: what attention costs."""
    return _expected(lengths.double().square(), area)


def _expected(square: Tensor, area: float) -> float:
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


def systematic(chance: Tensor, start: Tensor) -> Tensor:
    """``[*, U]`` bool, true with probability ``chance [U]``; as many as expected are true, to within 1.

    One number ``start [*, 1]`` in [0, 1) decides for all, in order of their chances (Madow's systematic sampling), so
    that about as many long histories as short ones are true in every draw. Draw it uniformly.
    """
    order = chance.argsort(stable=True)
    passed = chance[order].double().cumsum(0) + start
    drawn = passed.floor() > torch.nn.functional.pad(passed[..., :-1], (1, 0), value=0.0).floor()
    chosen = torch.empty_like(drawn)
    chosen[..., order] = drawn
    return chosen
