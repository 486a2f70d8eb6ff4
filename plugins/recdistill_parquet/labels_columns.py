"""What a caller appends, as the columns of a segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recdistill_core.errors import DataError, suggest
from recdistill_parquet.labels_segments import Columns, logit_column


def label_columns(example_id: Tensor, logits: Mapping[str, Tensor], tasks: Sequence[str], where: str) -> Columns:
    """``example_id`` int64 and ``logit_<task>`` float32 columns of one append, or a DataError."""
    if example_id.ndim != 1 or example_id.dtype != torch.int64:
        raise DataError(
            f"example_id must be [N] int64, got {list(example_id.shape)} {example_id.dtype}".replace("torch.", ""),
            where=where,
        )
    for task in sorted(set(logits) ^ set(tasks)):
        state = "no logits were given" if task in tasks else "logits were given"
        raise DataError(
            f"{state} for task {task!r}{'' if task in tasks else suggest(task, tasks)}",
            where=where,
            fix=f"give logits of exactly these tasks: {', '.join(tasks)}",
        )
    columns: Columns = {"example_id": example_id.numpy(force=True).copy()}
    for task in tasks:
        logit = logits[task]
        if logit.shape != example_id.shape or not logit.is_floating_point():
            raise DataError(
                f"logits of task {task!r} must be {list(example_id.shape)} floats, got {list(logit.shape)} "
                f"{str(logit.dtype).removeprefix('torch.')}",
                where=where,
            )
        columns[logit_column(task)] = logit.to(torch.float32).numpy(force=True).copy()
    return columns
