"""A dataset in memory and a small student: what exporters and trainers are given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError
from recdistill_core.features import StudentInputs, Tower, dense_layers
from recdistill_core.interfaces import HistoryWindow, SampleSource, Student
from recdistill_core.schema import Schema
from recdistill_core.testing.samples import sample_batch, sample_schema, windowed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class MemorySource(SampleSource):
    """The kit's sample batch as a :class:`recdistill_core.interfaces.SampleSource`, in time order.

    Args:
        schema: what its columns mean; the sample schema where None. rows: how many impressions. seed: of their values.
    """

    def __init__(self, schema: Schema | None = None, rows: int = 96, seed: int = 0) -> None:
        self.schema = schema or sample_schema()
        batch = sample_batch(self.schema, rows, seed)
        order = torch.argsort(batch.event_time, stable=True)
        self.whole = batch.rows(order).with_teacher(None)
        self.num_rows = rows
        self.snapshot_id = hashlib.sha256(f"{rows} rows of seed {seed}, {self.schema}".encode()).hexdigest()[:32]

    def row_at(self, time_ms: int) -> int:
        """See :meth:`SampleSource.row_at`."""
        return int(torch.searchsorted(self.whole.event_time, time_ms))

    def column(self, name: str) -> NDArray[Any]:
        """See :meth:`SampleSource.column`."""
        kind, _, task = name.partition("_")
        if kind == "label" and task in self.schema.tasks:
            label = torch.where(self.whole.observed[task], self.whole.labels[task], float("nan"))
            return label.numpy()
        found = getattr(self.whole, name, None)
        if not isinstance(found, Tensor):
            raise DataError(f"the sample has no column {name!r}", fix="use a field of Batch, or label_<task>")
        return found.numpy()

    def batch(self, rows: NDArray[np.int64], history: HistoryWindow | None = None) -> Batch:
        """See :meth:`SampleSource.batch`."""
        return windowed(self.whole.rows(torch.as_tensor(rows)), history)

    def truth(self, task: str) -> NDArray[np.float64] | None:
        """See :meth:`SampleSource.truth`: there is none."""
        return None


class SampleStudent(Student):
    """Embeddings, numeric features and three recent events through one dense layer.

    It remembers the towers that it made, as a student should not: what is served must not hold them all the same.
    """

    def __init__(self, schema: Schema, tasks: Sequence[str]) -> None:
        super().__init__()
        self.features = StudentInputs(schema, 4, recent=3)
        self.history = self.features.history
        self.width, self.tasks = 8, tuple(tasks)
        self.dense = dense_layers([self.features.out_width, self.width])
        self.made: list[nn.Module] = []

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """See :meth:`Student.inputs`."""
        return self.features.tensors(batch)

    def encode(self, **inputs: Tensor) -> Tensor:
        """``[N, D]``."""
        encoded: Tensor = self.dense(self.features(**inputs))
        return encoded

    def id_embedding(self, kind: str, ids: Tensor) -> Tensor | None:
        """See :meth:`Student.id_embedding`."""
        return self.features.categorical.of(kind, ids)

    def tower(self) -> nn.Module:
        """See :meth:`Student.tower`."""
        self.made.append(Tower(self.width, 4, self.tasks))
        return self.made[-1]
