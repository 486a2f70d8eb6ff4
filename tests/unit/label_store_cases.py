"""Small label stores for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from recdistill_core.interfaces import CaptureMode
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_writer import ParquetLabelWriter


def open_writer(store: ParquetLogitStore, version: str = "v1", **changes: Any) -> ParquetLabelWriter:
    given_ = {"tasks": ("click",), "mode": CaptureMode.PREQUENTIAL, "view": "view", "facts": {"seed": 1}}
    return store.writer(version, **{**given_, **changes})


def put(writer: ParquetLabelWriter, ids: Any, logits: Any = None, step: int = 7, task: str = "click") -> None:
    example_id = torch.as_tensor(ids, dtype=torch.int64)
    values = (
        example_id.remainder(256).to(torch.float32) / 8
        if logits is None
        else torch.as_tensor(logits, dtype=torch.float32)
    )
    writer.append(example_id, {task: values}, step=step, scored_at=1_700_000_000_000 + step)


def filled(path: Path, ids: Any = (5, 3, 9), **options: Any) -> ParquetLogitStore:
    store = ParquetLogitStore(path, **options)
    with open_writer(store) as writer:
        put(writer, list(ids))
        writer.commit()
    return store


def segments(path: Path) -> list[Path]:
    return sorted((path / "segments").glob("*"))


def read(store: ParquetLogitStore, ids: Any, version: str = "v1") -> tuple[list[float], list[bool]]:
    signal = store.read(version, np.asarray(ids, np.int64))
    return signal.logits["click"].tolist(), signal.valid["click"].tolist()
