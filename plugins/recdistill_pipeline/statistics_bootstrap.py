"""Paired bootstrap of one metric over users and seeds, for several models at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from recdistill_core.interfaces import Metric

#: Order of the models in the :class:`Draws` of an eta.
SIDES = ("raw", "teacher", "distilled")


@dataclass(frozen=True)
class Draws:
    """What the bootstrap drew, for ``M`` models of ``S`` seeds each.

    Attributes:
        point: ``[M, S]`` the metric of each model and seed on all rows; NaN where undefined.
        samples: ``[R', M, S]`` the same for the resamples of users in which every model's metric was defined.
        seed_weights: ``[R', S]`` how far each seed's weight is from ``1 / S`` in the resample, sums of 0; all 0 where
            the answer is for these trained models alone.
        resamples: resamples drawn, ``R``.
        undefined: resamples left out, ``R - R'``.
        users: distinct users.
        over_seeds: whether seeds vary.
    """

    point: NDArray[np.float64]
    samples: NDArray[np.float64]
    seed_weights: NDArray[np.float64]
    resamples: int
    undefined: int
    users: int
    over_seeds: bool

    @property
    def seeds(self) -> int:
        """Seeds of each model, ``S``."""
        return int(self.point.shape[1])

    def of(self, models: Sequence[int]) -> Draws:
        """The same resamples, of these models in this order."""
        chosen = list(models)
        return replace(self, point=self.point[chosen], samples=self.samples[:, chosen])

    def values(self) -> NDArray[np.float64]:
        """``[M]`` means over the seeds on all rows."""
        return np.asarray(self.point.mean(axis=1))

    def means(self, share: float) -> NDArray[np.float64]:
        """``[R', M]`` resampled means over seeds.

        Args:
            share: of the variance over users that is kept; see :class:`Spread`.
        """
        value = self.values()
        by_user = self.samples.mean(axis=2) - value
        by_seed = self.seed_weights @ (self.point - value[:, None]).T
        return np.asarray(value + math.sqrt(share) * by_user + by_seed)

    def spread(self, contrast: NDArray[np.float64]) -> Spread:
        """How uncertain a linear combination ``[M]`` of the models' means is; of at least 2 resamples."""
        per_seed = np.einsum("rms,m->rs", self.samples, contrast)
        both = float(per_seed.mean(axis=1).var(ddof=1))
        if not self.over_seeds:
            return Spread(both, 0.0, 1.0)
        # A user's reaction to one seed's model is in the spread of users as in that of seeds. It is what the average
        # spread of one seed has more than that of the mean of seeds, where it is a 1 / S of that.
        one = float(per_seed.var(axis=0, ddof=1).mean())
        twice = max(one - both, 0.0) / (self.seeds - 1)
        share = max(0.0, 1.0 - twice / both) if both > 0 else 1.0
        return Spread(share * both, float((contrast @ self.point).var(ddof=1)) / self.seeds, share)


@dataclass(frozen=True)
class Spread:
    """Variance of an estimate.

    Attributes:
        users: from the draw of users, without what ``seeds`` has already. seeds: from the draw of seeds, known with
            ``S - 1`` degrees of freedom.
        share: of the bootstrap's variance over users that ``users`` is.
    """

    users: float
    seeds: float
    share: float


def draw(
    metric: Metric,
    label: NDArray[np.float64],
    user: NDArray[np.int64],
    models: Sequence[Sequence[NDArray[np.float64]]],
    resamples: int,
    seed: int,
    over_seeds: bool,
    progress: Callable[[int, int], None] | None,
) -> Draws:
    """Resample; arguments as in :func:`recdistill_pipeline.statistics.transferability`.

    Args:
        models: for each the logits ``[N]`` of every seed; a single array stands for all seeds. The same array object
            given twice is evaluated once.

    Every model is prepared once and all stay in memory (for AUC 4 to 8 bytes a row and model); the ``[U]`` weights of
    one resample live for that resample only.
    """
    known, index = np.unique(user, return_inverse=True)
    users, seeds = len(known), max(len(one) for one in models)
    label = np.asarray(label, dtype=np.float64)
    distinct = {id(logit): logit for one in models for logit in one}
    place = {key: at for at, key in enumerate(distinct)}
    column = [[place[id(one[min(at, len(one) - 1)])] for at in range(seeds)] for one in models]
    ready = [metric.prepare(np.asarray(one, dtype=np.float64), label, index) for one in distinct.values()]
    rng = np.random.default_rng(seed)
    point = np.array([evaluate(np.ones(users)) for evaluate in ready])
    samples = np.empty((resamples, len(ready)))
    for at in range(resamples):
        weights = np.bincount(rng.integers(users, size=users), minlength=users).astype(np.float64)
        samples[at] = [evaluate(weights) for evaluate in ready]
        if progress is not None and ((at + 1) % 50 == 0 or at + 1 == resamples):
            progress(at + 1, resamples)
    varying = over_seeds and seeds > 1
    seed_weights = student_weights(rng, resamples, seeds) if varying else np.zeros((resamples, seeds))
    defined = np.isfinite(samples).all(axis=1)
    return Draws(
        point[column],
        samples[defined][:, column],
        seed_weights[defined],
        resamples,
        int((~defined).sum()),
        users,
        varying,
    )


def student_weights(rng: np.random.Generator, resamples: int, seeds: int) -> NDArray[np.float64]:
    """``[R, S]`` random changes of the seeds' weights that give their mean Student's distribution.

    Applied to ``S`` values they have the law of ``s / sqrt(S) * t``, with ``s`` the values' standard deviation and
    ``t`` of ``S - 1`` degrees of freedom: what is known of the mean of ``S`` normal values, however few.
    """
    normal = rng.normal(size=(resamples, seeds))
    normal -= normal.mean(axis=1, keepdims=True)
    return np.asarray(normal / np.sqrt(seeds * rng.chisquare(seeds - 1, size=(resamples, 1))))
