"""Which examples are worth a teacher's label, when there is a budget for labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


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
        """Choose ``budget`` of the candidates.

        Args:
            candidates: N of them. budget: in ``[1, N]``. seed: the same seed gives the same choice.

        Returns:
            ``[budget]`` int64 distinct positions in ``[0, N)``, the most valuable ones first.
        """
