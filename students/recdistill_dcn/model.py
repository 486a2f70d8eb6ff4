"""The DCN-v2 student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recdistill_core.batch import Batch
from recdistill_core.features import CrossLayer, StudentInputs, Tower, dense_layers
from recdistill_core.interfaces import Student
from recdistill_core.schema import Schema
from recdistill_dcn import DCNConfig


class DCN(Student):
    """Embeddings + numeric + pooled history -> cross layers beside dense layers -> ``[N, D]`` -> towers."""

    def __init__(self, config: DCNConfig, schema: Schema, tasks: Sequence[str]) -> None:
        super().__init__()
        self.config, self.tasks = config, tuple(tasks)
        self.features = StudentInputs(schema, config.embedding, config.recent)
        self.history = self.features.history
        width = self.features.out_width
        self.cross = nn.ModuleList(CrossLayer(width, config.rank) for _ in range(config.cross_layers))
        self.dense = dense_layers([width, *config.hidden], config.dropout)
        self.width = width + config.hidden[-1]

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """See :meth:`Student.inputs`."""
        return self.features.tensors(batch)

    def encode(self, **inputs: Tensor) -> Tensor:
        """``[N, D]``."""
        first = self.features(**inputs)
        current = first
        for layer in self.cross:
            current = layer(first, current)
        return torch.cat([current, self.dense(first)], dim=1)

    def id_embedding(self, kind: str, ids: Tensor) -> Tensor | None:
        """See :meth:`Student.id_embedding`; that of the candidate, not of events."""
        return self.features.categorical.of(kind, ids)

    def tower(self) -> nn.Module:
        """See :meth:`Student.tower`."""
        return Tower(self.width, self.config.tower, self.tasks)
