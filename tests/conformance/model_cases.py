"""A teacher and a student that keep their contracts; wrong and odd ones differ from them in one thing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recdistill_core import Batch, BuildContext, Scores
from recdistill_core.features import StudentInputs, Tower
from recdistill_core.fingerprint import module_fingerprint
from recdistill_core.interfaces import Student, TrainableTeacher


class GoodTeacher(TrainableTeacher):
    """Embeddings, numeric features and the mean of the newest events, under a linear layer."""

    recent = 3

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__()
        self.config, self.tasks = config, context.tasks
        schema = context.require_schema()
        self.features = StudentInputs(schema, 4, self.recent)
        self.history = self.features.history
        self.head = Tower(self.features.out_width, 0, self.tasks)
        self.view = f"{schema.view_hash()}:{','.join(self.tasks)}"

    def dense(self, batch: Batch) -> Tensor:
        found: Tensor = self.features(**self.features.tensors(batch))
        return found

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.head(self.dense(batch))
        return found

    def training_scores(self, batch: Batch) -> Scores:
        return Scores(self.logits(batch))

    def fingerprint(self) -> str:
        return module_fingerprint(self, self.config, self.view)


class GoodStudent(Student):
    """Embeddings, numeric features and the mean of the newest events, under one dense layer."""

    recent = 3

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__()
        self.config, self.schema, self.tasks = config, context.require_schema(), context.tasks
        self.features = StudentInputs(self.schema, 4, self.recent)
        self.history = self.features.history
        self.dense = nn.Linear(self.features.out_width, 6)
        self.width = 6

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return self.features.tensors(batch)

    def encode(self, **inputs: Tensor) -> Tensor:
        return torch.tanh(self.dense(self.features(**inputs)))

    def tower(self) -> nn.Module:
        return Tower(self.width, 3, self.tasks)
