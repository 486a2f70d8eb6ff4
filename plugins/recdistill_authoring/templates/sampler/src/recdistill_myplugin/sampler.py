"""The sampler itself."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from recdistill_core.interfaces import Candidates

from recdistill_myplugin import MyPluginConfig

MS_PER_DAY = 86_400_000


class MyPluginSampler:
    """Draws without putting back, with probabilities that halve every ``half_life_days`` of age.

    The largest ``budget`` of ``log(weight) + noise`` with Gumbel noise are such a draw, in the order of drawing
    (Kool, van Hoof and Welling, "Stochastic Beams and Where to Find Them", 2019, section 2).

    Args:
        config: holds ``half_life_days``.
    """

    def __init__(self, config: MyPluginConfig) -> None:
        self.half_life_ms = config.half_life_days * MS_PER_DAY

    def select(self, candidates: Candidates, budget: int, seed: int) -> NDArray[np.int64]:
        """Choose ``budget`` of ``N`` candidates.

        Returns:
            ``[budget]`` int64 distinct positions in ``[0, N)``, the first drawn first.
        """
        age = candidates.event_time.max() - candidates.event_time
        noise = np.random.default_rng(seed).gumbel(size=len(candidates))
        order = np.argsort(math.log(2) * age / self.half_life_ms - noise, kind="stable")
        return order[:budget].astype(np.int64)
