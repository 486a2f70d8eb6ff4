"""Which teacher labels to distrust: those that the outcomes of near examples speak against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import DataError
from recdistill_select.neighbours import ABSENT, nearest
from recdistill_select.points import prepared

Floats = NDArray[np.float64]
HOUR_MS = 3_600_000
#: How often the running threshold of ``share`` is renewed.
RENEWALS = 256


@dataclass(frozen=True)
class DiscriminatorConfig:
    """How a label is judged.

    Attributes:
        neighbours: examples whose outcomes are asked, >= 1; a label with fewer of them is never rejected.
        prior_rows: outcomes at the base rate that the local rate is shrunk with, > 0.
        z: labels with a larger ``|z|`` are rejected, > 0.
        share: in (0, 1): reject in place of ``z`` about this share, those with the largest ``|z|``; 0: go by ``z``.
        earlier_only: neighbours and the base rate are earlier events only.
        delay_hours: neighbours are earlier by more than this: as long as an outcome takes to be known, >= 0.
        standardise: scale every column of the embedding to variance 1.
        partition_rows: neighbours are looked for among so many random examples, which bounds the cost; 0: among all.
    """

    neighbours: int = 50
    prior_rows: float = 10.0
    z: float = 3.0
    share: float = 0.0
    earlier_only: bool = True
    delay_hours: float = 0.0
    standardise: bool = True
    partition_rows: int = 16384

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"neighbours must be >= 1, got {self.neighbours}")
        if not (self.prior_rows > 0 and self.z > 0):
            raise ValueError(f"prior_rows and z must be > 0, got prior_rows {self.prior_rows}, z {self.z}")
        if not 0.0 <= self.share < 1.0:
            raise ValueError(f"share must lie in [0, 1), got {self.share}")
        if self.delay_hours < 0:
            raise ValueError(f"delay_hours must be >= 0, got {self.delay_hours}")
        if self.partition_rows < 0 or self.partition_rows == 1:
            raise ValueError(f"partition_rows must be 0 or at least 2, got {self.partition_rows}")
        if not self.earlier_only and (self.share or self.delay_hours):
            raise ValueError("share and delay_hours go by time, so they need earlier_only: true")


@dataclass(frozen=True)
class Verdict:
    """What became of ``N`` labels.

    Attributes:
        probability: ``[N]`` of the teacher, NaN without a label.
        local_rate: ``[N]`` in (0, 1): positive rate of the neighbours, shrunk towards the base rate.
        neighbours: ``[N]`` int64: how many there were.
        z: ``[N]``: ``(probability - local_rate) / standard error``, NaN without a label.
        rejected: ``[N]`` bool.
    """

    probability: Floats
    local_rate: Floats
    neighbours: NDArray[np.int64]
    z: Floats
    rejected: NDArray[np.bool_]


def unreliable(
    teacher_logit: NDArray[np.floating],
    outcome: NDArray[np.floating],
    event_time: NDArray[np.int64],
    embedding: NDArray[np.float32],
    config: DiscriminatorConfig | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verdict:
    """Judge each teacher label by the outcomes of the examples nearest to it.

    With ``k`` neighbours, ``s`` of them positive, base rate ``b`` and ``m = prior_rows``, the local rate has the
    posterior ``Beta(s + m b, k - s + m (1 - b))`` with mean ``r``; ``z = (p_T - r) / sqrt(r (1 - r) / (k + m + 1))``.

    The row's own outcome never takes part, neither in its neighbours, nor in its base rate, nor in its threshold: a
    label that is rejected because it contradicts its own outcome would tell the student that outcome. With
    ``earlier_only`` no later outcome takes part either. The embedding is another matter: whoever hands in one of a
    model that was trained on these outcomes has let them choose who is near.

    Under ``share`` the threshold of a row is the quantile of ``|z|`` over earlier rows, renewed 256 times, so the share
    that is rejected is near to ``share`` and not equal to it; the first rows are all kept.

    Args:
        teacher_logit: ``[N]`` before the sigmoid, NaN without a label; of the probabilities with which outcomes are
            logged, so for a down-sampled log not corrected.
        outcome: ``[N]`` of 0 and 1, NaN where not observed. event_time: ``[N]`` int64 ms, ascending.
        embedding: ``[N, D]`` float32. config: see :class:`DiscriminatorConfig`. seed: of the parts.
        progress: told (rows done, N).

    Raises:
        DataError: for shapes that differ, times out of order, outcomes other than 0, 1 and NaN, infinite logits, or
            an embedding that is not finite.
    """
    config = config or DiscriminatorConfig()
    _check(teacher_logit, outcome, event_time)
    points = prepared(embedding, len(outcome), config.standardise, "discriminator")
    observed = ~np.isnan(outcome)
    positive = np.where(observed, outcome, 0.0).astype(np.float64)
    delay = round(config.delay_hours * HOUR_MS) if config.earlier_only else None
    found = nearest(
        points,
        event_time,
        observed,
        config.neighbours,
        delay=delay,
        partition_rows=config.partition_rows,
        seed=seed,
        progress=progress,
    )
    there = found != ABSENT
    count = there.sum(axis=1)
    base = _base_rate(positive, observed, event_time, delay)
    rows = count + config.prior_rows
    rate = ((positive[found] * there).sum(axis=1) + config.prior_rows * base) / rows
    probability = 0.5 + 0.5 * np.tanh(0.5 * teacher_logit.astype(np.float64))  # the sigmoid, which never overflows
    z = (probability - rate) / np.sqrt(rate * (1.0 - rate) / (rows + 1.0))
    judged = ~np.isnan(z) & (count == config.neighbours)
    limit = _running_threshold(np.abs(z), judged, event_time, config.share) if config.share else config.z
    rejected = judged & (np.abs(np.where(judged, z, 0.0)) > limit)
    return Verdict(probability, rate, count.astype(np.int64), z, rejected)


def _base_rate(positive: Floats, observed: NDArray[np.bool_], time: NDArray[np.int64], delay: int | None) -> Floats:
    """``[N]`` positive rate of the outcomes that a row may look at, its own left out, with one half of each added."""
    if delay is None:
        seen, hits = observed.sum() - observed, positive.sum() - positive
    else:
        before = np.searchsorted(time, time - delay, side="left")
        seen = np.concatenate([[0], np.cumsum(observed)])[before]
        hits = np.concatenate([[0.0], np.cumsum(positive)])[before]
    rate: Floats = (hits + 0.5) / (seen + 1.0)
    return rate


def _running_threshold(size: Floats, judged: NDArray[np.bool_], time: NDArray[np.int64], share: float) -> Floats:
    """``[N]`` quantile of ``size`` over strictly earlier judged rows; infinite while they are fewer than 1 / share."""
    limit = np.full(len(size), np.inf)
    for block in np.array_split(np.arange(len(size)), min(len(size), RENEWALS)):
        earlier = slice(0, int(np.searchsorted(time, time[block[0]], side="left")))
        known = size[earlier][judged[earlier]]
        if len(known) >= 1.0 / share:
            limit[block] = np.quantile(known, 1.0 - share)
    return limit


def _check(logit: NDArray[np.floating], outcome: NDArray[np.floating], time: NDArray[np.int64]) -> None:
    where = "discriminator"
    if not logit.shape == outcome.shape == time.shape or logit.ndim != 1 or logit.size == 0:
        raise DataError(
            f"logits have shape {list(logit.shape)}, outcomes {list(outcome.shape)}, times {list(time.shape)}",
            where=where,
            fix="give one of each per example, and at least one example",
        )
    if (np.diff(time) < 0).any():
        row = int((np.diff(time) < 0).argmax()) + 1
        raise DataError("times are out of order", where=f"{where}, row {row}", fix="sort the examples by event_time")
    wrong = ~(np.isnan(outcome) | (outcome == 0) | (outcome == 1))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"outcome {outcome[row]:g} is neither 0 nor 1", where=f"{where}, row {row}", fix="NaN is not observed"
        )
    if np.isinf(logit).any():
        row = int(np.isinf(logit).argmax())
        raise DataError(
            f"the teacher's logit is {logit[row]}", where=f"{where}, row {row}", fix="give NaN where there is no label"
        )
