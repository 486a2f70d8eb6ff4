"""The student itself.

``N`` rows, ``n`` fields, ``k`` factors. Field ``i`` of a row has a value ``x_i``, a weight ``w_i`` and factors ``v_i``.
"""

from __future__ import annotations

from collections.abc import Sequence

import recdistill_core as rd
import torch
from recdistill_core.features import Tower, history_inputs
from torch import Tensor, nn

from recdistill_fm import FmConfig


class Fields(nn.Module):
    """``x_i v_i`` of every field: categorical features (``x = 1``), numeric ones, and the mean of the newest events.

    Args:
        schema: features and vocabularies of the dataset.
        width: of ``v_i``; 1 gives the weights of the linear term.
        history: whether the newest events are a field.
    """

    def __init__(self, schema: rd.Schema, width: int, history: bool) -> None:
        super().__init__()
        self.shape = (len(schema.categorical), width)
        self.categorical = rd.FeatureEmbedding(schema, width)
        self.numeric = nn.Parameter(0.05 * torch.randn(len(schema.numeric), width))
        self.pooled = rd.RecentHistory(schema, width) if history else None

    def forward(self, categorical: Tensor, numeric: Tensor, **history: Tensor) -> Tensor:
        """``[N, Fc]`` int64 ids, ``[N, Fn]`` float32 and the tensors of ``history_inputs`` -> ``[N, n, width]``."""
        parts = [self.categorical(categorical).unflatten(1, self.shape), numeric[:, :, None] * self.numeric]
        if self.pooled is not None:
            parts.append(self.pooled(**history)[:, None])
        return torch.cat(parts, dim=1)


def interactions(fields: Tensor) -> Tensor:
    """``sum_{i<j} (x_i v_i) * (x_j v_j)`` in each dimension: ``[N, n, k] -> [N, k]`` in ``O(n k)``.

    Rendle 2010, lemma 3.1: half of the square of the sum less the sum of the squares.
    """
    pairs: Tensor = 0.5 * (fields.sum(1).square() - fields.square().sum(1))
    return pairs


class FmStudent(rd.Student):
    """``z = b + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j`` (Rendle, ICDM 2010, equation 1).

    The backbone ``[N, 1 + k]`` holds the linear term and the interactions of each dimension. A tower adds them up, with
    weights that start at 1, where the sum is Rendle's; learnt weights let towers and tasks differ.

    Args:
        config: ``k``, and how many newest events are pooled.
        schema: features and vocabularies of the dataset; without events there is no field of them.
        tasks: names of the tasks, one logit each.
    """

    def __init__(self, config: FmConfig, schema: rd.Schema, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.recent = config.recent if schema.events else 0
        self.history = rd.HistoryWindow(2 * self.recent, self.recent) if self.recent else None
        self.linear = Fields(schema, 1, self.recent > 0)
        self.factors = Fields(schema, config.embedding, self.recent > 0)
        self.width = 1 + config.embedding

    def inputs(self, batch: rd.Batch) -> dict[str, Tensor]:
        """What the served model is fed: ``categorical [N, Fc]`` int64, ``numeric [N, Fn]`` float32, newest events."""
        plain = {"categorical": batch.categorical, "numeric": batch.numeric}
        return {**plain, **history_inputs(batch, self.recent)} if self.recent else plain

    def encode(self, **inputs: Tensor) -> Tensor:
        """``[N, 1 + k]``, shared by all towers; an id outside its vocabulary counts as out of vocabulary."""
        return torch.cat([self.linear(**inputs).sum(1), interactions(self.factors(**inputs))], dim=1)

    def tower(self) -> nn.Module:
        """A new tower ``[N, 1 + k] -> {task: [N]}``: logits before the sigmoid."""
        tower = Tower(self.width, 0, self.tasks)
        nn.init.ones_(tower.out.weight)
        nn.init.zeros_(tower.out.bias)
        return tower
