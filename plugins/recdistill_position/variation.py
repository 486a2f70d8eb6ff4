"""Does the position vary when the item does not? If not, no model can tell the two effects apart."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from recdistill_core.schema import OOV


class PositionVariation:
    """Variance of the position within items over its total variance, from one pass.

    Memory is three numbers per item of the vocabulary. Rows of items outside the vocabulary are left out: they share
    one id but are many items.
    """

    def __init__(self) -> None:
        self._sums = np.zeros((3, 0))  # rows, sum of positions, sum of squared positions, per item

    def add(self, item: NDArray[np.int64], position: NDArray[np.int64]) -> None:
        """Add rows: ``item [N]`` vocabulary ids, ``position [N]`` >= 0."""
        known = item != OOV
        item, place = item[known], position[known].astype(np.float64)
        size = max(self._sums.shape[1], int(item.max(initial=-1)) + 1)
        self._sums = np.pad(self._sums, ((0, 0), (0, size - self._sums.shape[1])))
        for at, power in enumerate((np.ones_like(place), place, place**2)):
            self._sums[at] += np.bincount(item, weights=power, minlength=size)

    def share(self) -> float:
        """Within-item share of the variance, in about [0, 1]; 0 where no item or no position repeats."""
        rows, total, squares = self._sums
        shown = rows > 0
        spread = (squares[shown] - total[shown] ** 2 / rows[shown]).sum()
        freedom = (rows[shown] - 1).sum()
        count = rows.sum()
        overall = squares.sum() - total.sum() ** 2 / count if count else 0.0
        if freedom == 0 or overall <= 0:
            return 0.0
        return float((spread / freedom) / (overall / (count - 1)))


def measure(rows: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> float:
    """:meth:`PositionVariation.share` of ``(item [N], position [N])`` pairs."""
    variation = PositionVariation()
    for item, position in rows:
        variation.add(item, position)
    return variation.share()
