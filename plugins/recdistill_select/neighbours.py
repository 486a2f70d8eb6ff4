"""Exact nearest neighbours among the rows that a row may look at, in random parts of bounded size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from recdistill_select.points import Points, Rows, deal

#: Rows whose distances are held at once; with parts of 16,384 rows that is 64 MiB.
CHUNK = 1024
#: Stands where a row has fewer neighbours than were asked for.
ABSENT = -1


def nearest(
    points: Points,
    time: Rows,
    usable: NDArray[np.bool_],
    count: int,
    *,
    delay: int | None,
    partition_rows: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rows:
    """The nearest usable rows of every row in squared Euclidean distance, never the row itself.

    Rows are dealt at random into parts of at most ``partition_rows``, and a row looks for neighbours in its own part.
    Costs ``O(N * partition_rows * D)`` and memory for ``1024 * partition_rows`` distances. What parts give up: of P
    parts a row sees one row in P, so the neighbours that are found are farther away than the nearest of all.

    Args:
        points: ``[N, D]``. time: ``[N]`` int64 ms, ascending. usable: ``[N]``, who may be a neighbour. count: >= 1.
        delay: neighbours are earlier by more than so many ms, so with 0 strictly earlier; None: any time.
        partition_rows: >= 2; 0: one part. seed: of the parts. progress: told (rows done, N).

    Returns:
        ``[N, count]`` int64 positions, the nearest first, -1 where there are fewer.
    """
    found = np.full((len(points), count), ABSENT, np.int64)
    done = 0
    for part in deal(len(points), partition_rows, np.random.default_rng(seed)):
        limit = np.full(len(part), len(part), np.int64)
        if delay is not None:
            limit = np.searchsorted(time[part], time[part] - delay, side="left").astype(np.int64)
        # all rows of the part are columns, usable or not: how ties fall must not tell which later rows are usable
        references, useless = torch.from_numpy(points[part]), torch.from_numpy(~usable[part])
        norms = references.square().sum(dim=1)
        for start in range(0, len(part), CHUNK):
            rows, last = part[start : start + CHUNK], limit[start : start + CHUNK]
            reach = int(last.max())  # a column beyond it is too late for every row of the chunk
            if reach:
                queries = torch.from_numpy(points[rows])
                distance = norms[:reach] - 2.0 * (queries @ references[:reach].T)
                hidden = useless[:reach] | (torch.arange(reach) >= torch.from_numpy(last)[:, None])
                if delay is None:
                    hidden |= torch.arange(reach) == torch.arange(start, start + len(rows))[:, None]
                distance.masked_fill_(hidden, torch.inf)
                values, places = distance.topk(min(count, reach), dim=1, largest=False)
                near = np.where(torch.isinf(values).numpy(), ABSENT, part[places.numpy()])
                found[rows, : near.shape[1]] = near
            done += len(rows)
            progress(done, len(points))
    return found
