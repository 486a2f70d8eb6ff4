"""Which of several is best, with an error rate that holds for all comparisons together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

BEST = "best"
HIGHEST = "highest, not separated"
NOT_SEPARATED = "not separated from the best"
BELOW = "below the best"
#: On a row that no claim may rest on, whatever its value.
NO_RESULT = "no result"
Pair = tuple[int, int]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: rejecting those below a level keeps the family-wise error at most at it (Holm 1979).

    It needs nothing of how the comparisons hang together.
    """
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted, reached = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        reached = max(reached, min(1.0, (len(order) - rank) * p_values[at]))
        adjusted[at] = reached
    return adjusted


def verdicts(values: Sequence[float | None], adjusted: Mapping[Pair, float], level: float) -> list[str]:
    """A word on every row; empty where its value is undefined or there is no other row.

    Args:
        values: more is better. adjusted: of every pair ``(a, b)``, ``a < b``, of rows that have a value.
        level: of the family-wise error.
    """
    rows = [at for at, value in enumerate(values) if value is not None]
    said = [""] * len(values)
    if len(rows) < 2:
        return said
    top = max(rows, key=lambda at: values[at] or 0.0)
    for at in rows:
        if at != top:
            said[at] = BELOW if adjusted[min(at, top), max(at, top)] < level else NOT_SEPARATED
    said[top] = BEST if all(said[at] == BELOW for at in rows if at != top) else HIGHEST
    return said
