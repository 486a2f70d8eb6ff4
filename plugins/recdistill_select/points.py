"""Embeddings as points, and the random parts that bound the cost of looking at all pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import DataError

Points = NDArray[np.float32]
Rows = NDArray[np.int64]
#: Squares of numbers below it can be summed in float32.
LARGEST = 1e15


def prepared(embedding: Points, rows: int, standardise: bool, where: str) -> Points:
    """``[N, D]`` float32, centred, with columns of variance 1 where asked for; a constant column counts nothing.

    Raises:
        DataError: unless the embedding is ``[rows, D]`` with ``D >= 1`` and every number in it is below 1e15 in size.
    """
    if embedding.ndim != 2 or embedding.shape[0] != rows or embedding.shape[1] < 1:
        raise DataError(
            f"the embedding has shape {list(embedding.shape)} for {rows:,} examples",
            where=where,
            fix="give one row of at least one number per example",
        )
    if not max(embedding.max(), -embedding.min()) < LARGEST:  # NaN too is not below it
        wrong = int((~(np.abs(embedding) < LARGEST)).any(axis=1).argmax())
        raise DataError(
            f"the embedding holds numbers that are not finite or not below {LARGEST:g}",
            where=f"{where}, row {wrong}",
            fix="look at the training of the cheap model",
        )
    mean = embedding.mean(axis=0, dtype=np.float64)
    centred = embedding - mean.astype(np.float32)
    if standardise:
        spread = np.sqrt(np.square(centred).mean(axis=0, dtype=np.float64))
        # what rounding leaves of a constant column must not be blown up into a feature
        constant = spread <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
        centred *= np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, spread)).astype(np.float32)
    return np.ascontiguousarray(centred, dtype=np.float32)


def deal(rows: int, most: int, generator: np.random.Generator) -> list[Rows]:
    """All rows, in as few random parts of nearly equal size as hold at most ``most`` rows each; 0: one part.

    Rows of a part are in ascending order.
    """
    if most == 0 or rows <= most:
        return [np.arange(rows, dtype=np.int64)]
    dealt = generator.permutation(rows).astype(np.int64)
    return [np.sort(part) for part in np.array_split(dealt, -(-rows // most))]
