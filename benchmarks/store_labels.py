"""The labels that the benchmarks of the label store write and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recdistill_core.interfaces import CaptureMode
from recdistill_parquet.labels import ParquetLogitStore

BATCH, VERSION = 2048, "bench"


def example_ids(kind: str, rows: int) -> NDArray[np.int64]:
    """``rows`` shuffled ids: numbers of a dataset's rows, or any numbers of 64 bits."""
    draw = np.random.default_rng(0)
    return draw.permutation(rows) if kind == "rows" else draw.integers(-(2**63), 2**63 - 1, rows)


@dataclass
class Labels:
    """Labels of one task, ``[N]`` each, in the order in which they are captured: one step for each batch."""

    example_id: NDArray[np.int64]
    logit_click: NDArray[np.float32]
    step: NDArray[np.int64]
    scored_at: NDArray[np.int64]

    @classmethod
    def of(cls, ids: NDArray[np.int64]) -> Labels:
        logits = np.random.default_rng(1).standard_normal(ids.size, np.float32) - np.float32(3)
        step = np.arange(ids.size) // BATCH
        return cls(ids, logits, step, 1_700_000_000_000 + 100 * step)

    def columns(self) -> Mapping[str, NDArray[Any]]:
        return vars(self)


def capture(place: Path, labels: Labels, segment_rows: int = 1_000_000) -> ParquetLogitStore:
    """Append in batches, as a training loop does, and commit."""
    store = ParquetLogitStore(place, segment_rows)
    ids, logits = torch.from_numpy(labels.example_id), torch.from_numpy(labels.logit_click)
    with store.writer(VERSION, tasks=["click"], mode=CaptureMode.EXTERNAL, view="none", facts={}) as writer:
        for first in range(0, len(ids), BATCH):
            part = slice(first, first + BATCH)
            step, at = int(labels.step[first]), int(labels.scored_at[first])
            writer.append(ids[part], {"click": logits[part]}, step=step, scored_at=at)
        writer.commit()
    return store
