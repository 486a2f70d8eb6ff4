"""The student itself."""

from __future__ import annotations

from collections.abc import Sequence

import recdistill_core as rd
import torch
from recdistill_core.features import Tower
from torch import Tensor, nn

from recdistill_myplugin import MyPluginConfig


class MyPluginStudent(rd.Student):
    """Embeddings + numeric features ``[N, D]`` -> linear towers. It reads no history.

    A student knows nothing of distillation: the head strategy asks for towers, and the main one alone is served.

    Args:
        config: widths.
        schema: features and vocabularies of the dataset.
        tasks: names of the tasks, one logit each.
    """

    def __init__(self, config: MyPluginConfig, schema: rd.Schema, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.embed = rd.FeatureEmbedding(schema, config.embedding)
        self.width = self.embed.out_width + len(schema.numeric)

    def inputs(self, batch: rd.Batch) -> dict[str, Tensor]:
        """What the served model is fed: ``categorical [N, Fc]`` int64 ids and ``numeric [N, Fn]`` float32."""
        return {"categorical": batch.categorical, "numeric": batch.numeric}

    def encode(self, **inputs: Tensor) -> Tensor:
        """``[N, D]``, shared by all towers; an id outside its vocabulary counts as out of vocabulary."""
        return torch.cat([self.embed(inputs["categorical"]), inputs["numeric"]], dim=1)

    def tower(self) -> nn.Module:
        """A new linear tower ``[N, D] -> {task: [N]}``: logits before the sigmoid."""
        return Tower(self.width, 0, self.tasks)
