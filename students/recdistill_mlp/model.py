"""The MLP student."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from recdistill_core.batch import Batch
from recdistill_core.features import StudentInputs, Tower, dense_layers
from recdistill_core.interfaces import Student
from recdistill_core.schema import Schema
from recdistill_mlp import MLPConfig


class MLP(Student):
    """Embeddings + numeric + pooled history -> dense layers ``[N, D]`` -> towers."""

    def __init__(self, config: MLPConfig, schema: Schema, tasks: Sequence[str]) -> None:
        super().__init__()
        self.config, self.tasks = config, tuple(tasks)
        self.features = StudentInputs(schema, config.embedding, config.recent)
        self.history = self.features.history
        self.dense = dense_layers([self.features.out_width, *config.hidden], config.dropout)
        self.width = config.hidden[-1]

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """See :meth:`Student.inputs`."""
        return self.features.tensors(batch)

    def encode(self, **inputs: Tensor) -> Tensor:
        """``[N, D]``."""
        encoded: Tensor = self.dense(self.features(**inputs))
        return encoded

    def id_embedding(self, kind: str, ids: Tensor) -> Tensor | None:
        """See :meth:`Student.id_embedding`; that of the candidate, not of events."""
        return self.features.categorical.of(kind, ids)

    def tower(self) -> nn.Module:
        """See :meth:`Student.tower`."""
        return Tower(self.width, self.config.tower, self.tasks)
