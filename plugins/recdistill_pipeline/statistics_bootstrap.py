"""Paired bootstrap of one metric over users and seeds, for three sides at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from recdistill_core.interfaces import Metric

#: Order of the last axis of :class:`Draws`.
SIDES = ("raw", "teacher", "distilled")


@dataclass(frozen=True)
class Draws:
    """What the bootstrap drew.

    Attributes:
        point: ``[3]`` the metric of each side of :data:`SIDES` on all rows, mean over seeds; NaN where undefined.
        samples: ``[R', 3]`` the same for the resamples in which every model's metric was defined.
        resamples: resamples drawn, ``R``.
        undefined: resamples left out, ``R - R'``.
        users: distinct users. seeds: seeds of the students.
    """

    point: NDArray[np.float64]
    samples: NDArray[np.float64]
    resamples: int
    undefined: int
    users: int
    seeds: int


def draw(
    metric: Metric,
    label: NDArray[np.float64],
    user: NDArray[np.int64],
    sides: Sequence[Sequence[NDArray[np.float64]]],
    resamples: int,
    seed: int,
    over_seeds: bool,
    progress: Callable[[int, int], None] | None,
) -> Draws:
    """Resample; arguments as in :func:`recdistill_pipeline.statistics.transferability`.

    Every model is prepared once and all stay in memory (for AUC 4 to 8 bytes a row and model); the ``[U]`` weights of
    one resample live for that resample only.
    """
    known, index = np.unique(user, return_inverse=True)
    users, seeds = len(known), len(sides[0])
    label = np.asarray(label, dtype=np.float64)
    models = [[metric.prepare(np.asarray(one, dtype=np.float64), label, index) for one in side] for side in sides]
    rng = np.random.default_rng(seed)
    everyone = np.arange(seeds)
    point = _means(models, np.ones(users), everyone)
    samples = np.empty((resamples, len(sides)))
    for at in range(resamples):
        weights = np.bincount(rng.integers(users, size=users), minlength=users).astype(np.float64)
        picked = rng.integers(seeds, size=seeds - 1) if over_seeds and seeds > 1 else everyone
        samples[at] = _means(models, weights, picked)
        if progress is not None and ((at + 1) % 50 == 0 or at + 1 == resamples):
            progress(at + 1, resamples)
    defined = np.isfinite(samples).all(axis=1)
    return Draws(point, samples[defined], resamples, int((~defined).sum()), users, seeds)


def _means(
    models: Sequence[Sequence[Callable[[NDArray[np.float64]], float]]],
    weights: NDArray[np.float64],
    picked: NDArray[np.int64],
) -> NDArray[np.float64]:
    """``[3]`` means over the seeds ``picked``; a side with one model uses it for every seed."""
    means = []
    for side in models:
        chosen = np.minimum(picked, len(side) - 1)
        distinct, times = np.unique(chosen, return_counts=True)
        means.append(sum(count * side[one](weights) for one, count in zip(distinct, times, strict=True)) / len(picked))
    return np.array(means, dtype=np.float64)
