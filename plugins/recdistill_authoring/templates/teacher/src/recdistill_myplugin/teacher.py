"""The teacher itself."""

from __future__ import annotations

from collections.abc import Sequence

import recdistill_core as rd
from recdistill_core.features import StudentInputs, Tower
from recdistill_core.fingerprint import module_fingerprint
from torch import Tensor

from recdistill_myplugin import MyPluginConfig


class MyPluginTeacher(rd.TrainableTeacher):
    """Embeddings + numeric features + mean of the newest events -> one hidden layer -> one logit per task.

    No label, no other row and no later event moves a logit: a row reads its own features and the events before it.

    Args:
        config: widths and the number of events.
        schema: features, vocabularies and event fields of the dataset.
        tasks: names of the tasks, one logit each.
    """

    def __init__(self, config: MyPluginConfig, schema: rd.Schema, tasks: Sequence[str]) -> None:
        super().__init__()
        self.config, self.schema, self.tasks = config, schema, tuple(tasks)
        self.features = StudentInputs(schema, config.embedding, config.recent)
        self.history = self.features.history
        self.head = Tower(self.features.out_width, config.hidden, self.tasks)

    def training_scores(self, batch: rd.Batch) -> rd.Scores:
        """Logits ``{task: [N]}`` before the sigmoid, with gradient, in the current mode."""
        dense: Tensor = self.features(**self.features.tensors(batch))
        return rd.Scores(self.head(dense))

    def fingerprint(self) -> str:
        """32 hex digits of weights, settings, feature view and tasks; equal in every process."""
        return module_fingerprint(self, self.config, f"{self.schema.view_hash()}:{','.join(self.tasks)}")
