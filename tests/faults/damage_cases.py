"""What the tests of damaged stores write, and what must be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from recdistill_core.labels import CaptureMode
from recdistill_parquet.labels import ParquetLogitStore

COUNT = 200
IDS = np.arange(COUNT)


def logit(key: int) -> float:
    return (key * 37 % 101) / 8


def append(store: ParquetLogitStore, version: str, first: int, last: int, **wrong: float) -> Any:
    with store.writer(version, tasks=["click"], mode=CaptureMode.PREQUENTIAL, view="v", facts={"x": 1}) as writer:
        values = [wrong.get(f"id{key}", logit(key)) for key in range(first, last)]
        writer.append(torch.arange(first, last), {"click": torch.tensor(values)}, step=first, scored_at=first)
        return writer.commit()


def small(path: Path) -> ParquetLogitStore:
    """A store with the labels of 25 examples in three segments."""
    made = ParquetLogitStore(path, 10)
    append(made, "v1", 0, 25)
    return made
