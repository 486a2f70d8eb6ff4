"""Full ranking: the place of a target among ALL items, and HR@K, NDCG@K and MRR over users, with intervals.

There is one target per user, hence HR@K = [rank <= K], NDCG@K = [rank <= K] / log2(rank + 1) and MRR = 1 / rank, each
averaged over users. No candidate is sampled: sampled rankings order models otherwise (Krichene and Rendle, 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recdistill_core.errors import DataError

TIES = ("pessimistic", "average")
CUTS = (10, 50, 200)


@dataclass(frozen=True)
class Interval:
    """A mean over users and its bootstrap interval."""

    value: float
    low: float
    high: float


def ranks(
    score: Tensor,
    target: Tensor,
    seen: tuple[Tensor, Tensor] | None = None,
    ties: str = "pessimistic",
) -> Tensor:
    """``[B]`` float64 ranks of the targets, 1 for the best.

    Args:
        score: ``[B, V]``, higher is better; column 0, out of vocabulary, is never a candidate.
        target: ``[B]`` int64 in [1, V).
        seen: ``(row [S], item [S])``: items that are no candidates for a row; the target always is one.
        ties: items that score as the target count as better (``pessimistic``, so that a model that scores all items
            alike is the worst, not the best), or half of them do (``average``).

    Raises:
        DataError: for a score that is NaN or infinite, or a target that is no item.
    """
    if ties not in TIES:
        raise ValueError(f"ties must be one of {', '.join(TIES)}, got {ties!r}")
    if target.numel() and not 1 <= int(target.min()) <= int(target.max()) < score.shape[1]:
        raise DataError(
            f"targets reach from {int(target.min())} to {int(target.max())}; items are 1 to {score.shape[1] - 1}",
            where="full ranking",
            fix="leave targets that are out of vocabulary out, and count them",
        )
    if not bool(torch.isfinite(score).all()):
        raise DataError(
            "a score is NaN or infinite", where="full ranking", fix="train with a lower learning rate, or look at lr"
        )
    own = score.gather(1, target[:, None])
    candidate = torch.ones_like(score, dtype=torch.bool)
    if seen is not None:
        candidate[seen] = False
    candidate[:, 0] = False
    candidate.scatter_(1, target[:, None], False)
    better = ((score > own) & candidate).sum(1)
    equal = ((score == own) & candidate).sum(1)
    return 1.0 + better.double() + equal.double() * (1.0 if ties == "pessimistic" else 0.5)


def per_user(rank: NDArray[np.float64], cuts: Sequence[int] = CUTS) -> dict[str, NDArray[np.float64]]:
    """``{"hr@10": [U], "ndcg@10": [U], ..., "mrr": [U]}`` from ``rank [U]``."""
    gain = 1.0 / np.log2(rank + 1.0)
    found: dict[str, NDArray[np.float64]] = {}
    for cut in cuts:
        hit = rank <= cut
        found[f"hr@{cut}"] = hit.astype(np.float64)
        found[f"ndcg@{cut}"] = np.where(hit, gain, 0.0)
    return {**found, "mrr": 1.0 / rank}


def summarise(
    rank: NDArray[np.float64],
    cuts: Sequence[int] = CUTS,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Means over users with percentile intervals of a bootstrap over users; the same resamples for every metric.

    Raises:
        DataError: without a single user.
    """
    if not rank.size:
        raise DataError("there is no user to rank for", where="full ranking", fix="hold out less, or use more users")
    values = per_user(rank, cuts)
    together = np.stack(list(values.values()))
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, len(values)))
    for at in range(resamples):
        weight = np.bincount(rng.integers(rank.size, size=rank.size), minlength=rank.size)
        drawn[at] = together @ weight / rank.size
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1.0 - tail], axis=0)
    means = together.mean(axis=1)
    return {name: Interval(float(means[at]), float(low[at]), float(high[at])) for at, name in enumerate(values)}


def full_ranking(
    parts: Iterable[tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]],
    table: Tensor,
    ties: str = "pessimistic",
) -> NDArray[np.float64]:
    """``[U]`` ranks, some users at a time, so that memory is bounded by a part times the number of items.

    Args:
        parts: ``(query [B, D], target [B], seen)`` of some users; see :func:`ranks`.
        table: ``[V, D]`` of all items; a score is the product of query and item.
    """
    found = [ranks(query @ table.T, target, seen, ties).cpu().numpy() for query, target, seen in parts]
    return np.concatenate(found) if found else np.zeros(0)


def as_plain(found: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    """``{metric: {"value": ..., "low": ..., "high": ...}}``, JSON-able."""
    return {name: {"value": one.value, "low": one.low, "high": one.high} for name, one in found.items()}
