"""Score the test rows with a trained model, and count what the model costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recdistill_core.batch import Batch
from recdistill_core.interfaces import HistoryWindow, SampleSource
from recdistill_lightning.rows import read_batch

FLOP_ROWS = 64


def score_rows(
    source: SampleSource,
    rows: tuple[int, int],
    history: HistoryWindow | None,
    score: Callable[[Batch], Tensor],
    batch_size: int,
) -> NDArray[np.float64]:
    """Raw logits ``[rows]`` in row order; ``score(batch) -> [N]``. Rows are independent, so batches may be any."""
    users = source.column("user_id")[rows[0] : rows[1]]
    order = np.argsort(users, kind="stable")  # rows of one user together: their history is encoded once
    logits = np.empty(len(order), dtype=np.float64)
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            batch = read_batch(source, part.astype(np.int64) + rows[0], history)
            logits[part] = score(batch).double().numpy()
    return logits


def rows_by_user(
    source: SampleSource, rows: NDArray[np.int64], history: HistoryWindow | None, batch_size: int
) -> Iterator[Batch]:
    """Batches of the row positions ``rows [R]``, a user's rows together: their history is encoded once."""
    order = rows[np.argsort(source.column("user_id")[rows], kind="stable")]
    for start in range(0, order.size, batch_size):
        yield read_batch(source, order[start : start + batch_size], history)


def cost(
    module: nn.Module,
    score: Callable[[Batch], Any],
    source: SampleSource,
    rows: tuple[int, int],
    history: HistoryWindow | None,
) -> dict[str, float]:
    """Parameters, of which embeddings, and forward FLOPs of scoring one impression with its history.

    FLOPs are the mean over up to 64 test rows, evenly spaced, each scored alone, multiply and add counted as two.
    Matrix products, convolutions and attention count, nothing else.
    """
    picked = np.unique(np.linspace(rows[0], rows[1] - 1, FLOP_ROWS).astype(np.int64))
    flops = 0
    # torch's counter does not see the fused attention of CPUs; the plain one does the same work
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for row in picked:
            score(source.batch(np.array([row]), history))
        flops = counter.get_total_flops()
    tables = {id(entry.weight): entry.weight.numel() for entry in module.modules() if isinstance(entry, nn.Embedding)}
    total = sum(parameter.numel() for parameter in module.parameters())
    embedding = sum(tables.values())
    return {
        "parameters": total,
        "embedding_parameters": embedding,
        "dense_parameters": total - embedding,
        "flops_per_impression": flops / len(picked),
    }
