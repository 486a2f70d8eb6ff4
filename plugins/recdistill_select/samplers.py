"""Samplers that look at one number per example or at none."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import DataError, UsageError, suggest
from recdistill_core.sampler import Candidates
from recdistill_select import UncertaintyConfig

Rows = NDArray[np.int64]


class RandomSampler:
    """A uniform draw without replacement. Looks at nothing, so a larger budget of a seed begins with a smaller one."""

    def select(self, candidates: Candidates, budget: int, seed: int) -> Rows:
        """See :meth:`recdistill_core.sampler.Sampler.select`."""
        return np.random.default_rng(seed).permutation(len(candidates))[:budget].astype(np.int64)


class UncertaintySampler:
    """Uncertainty sampling (Lewis and Gale 1994): the examples whose logit is nearest to ``logit(centre)`` first.

    Ties fall at random under the seed. With ``random_share`` drawn examples are spread evenly among the uncertain ones,
    so that every beginning of the choice holds about that share of them.
    """

    def __init__(self, config: UncertaintyConfig) -> None:
        self.config = config

    def select(self, candidates: Candidates, budget: int, seed: int) -> Rows:
        """See :meth:`recdistill_core.sampler.Sampler.select`.

        Raises:
            UsageError: for a task that the candidates have no logits of.
            DataError: for a logit that is not finite.
        """
        logit = self._logit(candidates.logits).astype(np.float64)
        wrong = ~np.isfinite(logit)
        if wrong.any():
            raise DataError(
                f"{int(wrong.sum())} logits of the cheap model are not finite",
                where=f"sampler 'uncertainty', example {int(candidates.example_id[wrong.argmax()])}",
                fix="train the cheap model again with a smaller learning rate",
            )
        generator = np.random.default_rng(seed)
        distance = np.abs(logit - math.log(self.config.centre / (1.0 - self.config.centre)))
        order = np.lexsort((generator.permutation(len(logit)), distance)).astype(np.int64)
        drawn = round(self.config.random_share * budget)
        uncertain = order[: budget - drawn]
        others = generator.permutation(order[budget - drawn :])[:drawn]
        places = np.concatenate([_spread(len(uncertain)), _spread(drawn)])
        return np.concatenate([uncertain, others])[np.argsort(places, kind="stable")]

    def _logit(self, logits: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        task = self.config.task or next(iter(logits), "")
        if task not in logits:
            raise UsageError(
                f"the cheap model has no logits of task {task!r}{suggest(task, logits)}",
                where=f"sampler 'uncertainty'; tasks: {', '.join(logits) or 'none'}",
                fix="set task to one of them",
            )
        return logits[task]


def _spread(count: int) -> NDArray[np.float64]:
    """``[count]`` places, evenly in (0, 1)."""
    return (np.arange(count) + 0.5) / max(count, 1)
