"""Which examples are worth a teacher's label, when there is a budget for labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import PluginError, UsageError


@dataclass(frozen=True)
class Candidates:
    """Examples that could be labelled, as a cheap model that has no teacher sees them.

    Attributes:
        example_id, event_time, user_id: ``[N]`` int64; times in ms since the epoch, UTC, ascending.
        embedding: ``[N, D]`` float32: what the cheap model makes of each example, such as a raw student's backbone.
        logits: ``{task: [N]}`` float32 of the cheap model, before the sigmoid.
    """

    example_id: NDArray[np.int64]
    event_time: NDArray[np.int64]
    user_id: NDArray[np.int64]
    embedding: NDArray[np.float32]
    logits: Mapping[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return int(self.example_id.size)


class Sampler(Protocol):
    """Chooses examples; it is given no outcome, so that no label can decide what is labelled."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> NDArray[np.int64]:
        """Choose ``budget`` of the candidates, by ``seed`` and the candidates alone.

        Args:
            candidates: N of them; left as they were. budget: in ``[1, N]``. seed: >= 0; the same seed gives the same
                choice, whatever the state of any global random generator, which stays as it was.

        Returns:
            ``[budget]`` int64 distinct positions in ``[0, N)``, the most valuable ones first.
        """


def choose(sampler: Sampler, candidates: Candidates, budget: int, seed: int) -> NDArray[np.int64]:
    """What ``sampler.select`` chooses, with the budget and the answer checked.

    Raises:
        UsageError: for a budget outside ``[1, N]``. PluginError: for an answer that is no such choice.
    """
    count = len(candidates)
    if not 1 <= budget <= count:
        raise UsageError(
            f"the budget is {budget:,} examples, and there are {count:,} candidates",
            fix="ask for 1 or more, and for no more than there are" if count else "look for why there is none",
        )
    found = sampler.select(candidates, budget, seed)
    fault = fault_of(found, budget, count)
    if fault:
        raise PluginError(
            f"sampler {type(sampler).__name__} {fault}", fix="report it to the sampler's author, or use another one"
        )
    return found


def fault_of(found: object, budget: int, count: int) -> str:
    """What keeps an answer of :meth:`Sampler.select` from being a choice of ``budget`` out of ``count``, or nothing."""
    if not isinstance(found, np.ndarray):
        return f"returns a {type(found).__name__}, not an array of positions"
    if found.dtype != np.int64 or found.shape != (budget,):
        return f"returns {found.dtype} {list(found.shape)}, not int64 [{budget}]"
    if found.size and not (found.min() >= 0 and found.max() < count):
        return f"returns positions from {found.min()} to {found.max()}; there are {count} candidates, counted from 0"
    distinct = len(np.unique(found))
    return f"returns {distinct} distinct positions, not {budget}" if distinct < budget else ""
