"""How the rows of one batch are dealt to processes that train together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from recdistill_core.batch import Batch, Share
from recdistill_core.errors import UsageError
from recdistill_core.ranks import rank_and_world


@dataclass(frozen=True)
class Dealt:
    """What one process has of a batch.

    Attributes:
        rows: ``[n >= 1]`` int64 row positions that it reads.
        whole: ``[G]`` int64 row positions of the batch.
        processes: how many share it.
        idle: True where no row is left for it: it reads the first of the batch, which counts nowhere.
    """

    rows: NDArray[np.int64]
    whole: NDArray[np.int64]
    processes: int
    idle: bool


def deal(
    rows: NDArray[np.int64], user: NDArray[np.int64], request: NDArray[np.int64], rank: int, processes: int
) -> Dealt:
    """The part of the batch ``rows [G]`` that process ``rank`` of ``processes`` has; all parts make up the batch.

    ``user`` and ``request`` are as for :func:`cuts`.
    """
    bounds = cuts(user, request, processes)
    mine = rows[bounds[rank] : bounds[rank + 1]]
    return Dealt(mine if mine.size else rows[:1], rows, processes, not mine.size)


def share_of(batch: Batch) -> Batch:
    """This process's part of a batch that every process has whole; ``batch`` itself where there is one process."""
    rank, processes = rank_and_world()
    if processes == 1:
        return batch
    columns = (batch.user_id.cpu().numpy(), batch.request_id.cpu().numpy())
    found = deal(np.arange(len(batch)), *columns, rank, processes)
    part = batch.rows(torch.from_numpy(found.rows).to(batch.example_id.device))
    return replace(part, share=Share(batch.example_id.cpu(), processes, found.idle))


def loss_weight(batch: Batch) -> float | None:
    """What to multiply the loss of this process by; None where it has the whole batch.

    Raises:
        UsageError: if there are several processes and the batch does not say what the others have.
    """
    if batch.share is not None:
        return batch.share.weight(len(batch))
    processes = rank_and_world()[1]
    if processes > 1:
        raise UsageError(
            f"{processes} processes train together, and the batch does not say which whole one it is a share of",
            where="Batch.share",
            fix="fit with datamodule=DistillationDataModule(...), or set share=Share(ids, processes) in your batches",
        )
    return None


def cuts(user: NDArray[np.int64], request: NDArray[np.int64], processes: int) -> NDArray[np.int64]:
    """Where to cut a batch into parts of about one size.

    Neighbouring rows of a request stay together, for losses over them. So do neighbouring rows of a user, whose
    history is encoded once then, unless that moves a cut by more than half a part. A part may be empty: where the
    batch has fewer rows than there are processes, or large requests.

    Args:
        user, request: ``[G]`` of the rows, in the order in which they are read.
        processes: number of parts, >= 1.

    Returns:
        ``[processes + 1]`` int64 ascending; part ``k`` is ``[bounds[k], bounds[k + 1])``.
    """
    count = len(user)
    wanted = np.arange(processes + 1) * count / processes
    requests = _between(request)
    users = np.intersect1d(_between(user), requests, assume_unique=True)
    by_user, by_request = _nearest(users, wanted), _nearest(requests, wanted)
    close = np.abs(by_user - wanted) <= count / processes / 2
    # two rules may put neighbouring cuts in the wrong order; none of them ever goes back
    return np.maximum.accumulate(np.where(close, by_user, by_request))


def _between(owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places between rows of different owners, both ends included."""
    inner = np.flatnonzero(owner[1:] != owner[:-1]) + 1
    return np.concatenate([[0], inner, [len(owner)]]).astype(np.int64)


def _nearest(places: NDArray[np.int64], wanted: NDArray[np.float64]) -> NDArray[np.int64]:
    """The entry of the ascending ``places`` that is nearest to each wanted one; the lower one of two."""
    above = np.clip(np.searchsorted(places, wanted), 1, len(places) - 1)
    below = above - 1
    return np.where(wanted - places[below] <= places[above] - wanted, places[below], places[above])
