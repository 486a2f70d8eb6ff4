"""Small label stores for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from recdistill_core.interfaces import CaptureMode
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_writer import ParquetLabelWriter

T = 1_700_000_000_000
DAY = 86_400_000


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


def grown(path: Path, commits: int = 6, **options: Any) -> ParquetLogitStore:
    """Commit ``k`` holds the examples ``10 * k + [0, 10)``."""
    store = ParquetLogitStore(path, **options)
    with open_writer(store) as writer:
        for number in range(commits):
            put(writer, range(10 * number, 10 * number + 10), step=number)
            writer.commit()
    return store


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
