"""From a candidate's transduced token and its context to one logit per task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from recdistill_core.batch import Scores
from recdistill_core.errors import ConfigError, Problem, suggest
from recdistill_core.features import CrossLayer, FeatureEmbedding
from recdistill_core.schema import Schema
from recdistill_hstu.layer import normalise


class HeadConfig(Protocol):
    """The part of a teacher's configuration that its head reads; see ``HSTUConfig`` for each field."""

    @property
    def width(self) -> int:
        """``D``."""

    @property
    def context_width(self) -> int:
        """Width of one categorical feature's embedding."""

    @property
    def leave_out(self) -> tuple[str, ...]:
        """Features that the head does not read."""

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of hidden layers."""

    @property
    def cross_layers(self) -> int:
        """Number of cross layers."""

    @property
    def cross_rank(self) -> int:
        """Rank of their matrices; 0: full."""


class ScoringHead(nn.Module):
    """Logits from four sources: candidate token, user state, their product, and the row's own features.

    The input ``x0`` (embeddings of all categorical features, numeric features, candidate token, user state) goes
    through cross layers and, beside them, with the product of token and state, through an MLP; a linear layer reads
    both. So the head holds a parallel DCN-v2 on all that a student without history sees.

    Args:
        config: sizes.
        schema: the dataset's schema.
        tasks: names of the tasks, in order.

    Raises:
        ConfigError: if ``config.leave_out`` names a feature that the dataset does not have.
    """

    def __init__(self, config: HeadConfig, schema: Schema, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.features = FeatureEmbedding(schema, config.context_width, _read(schema, config.leave_out))
        width = self.features.out_width + len(schema.numeric) + 2 * config.width
        self.cross = nn.ModuleList([_xavier(CrossLayer(width, config.cross_rank)) for _ in range(config.cross_layers)])
        sizes = [width + config.width, *config.hidden]
        stages: list[nn.Module] = []
        for before, after in pairwise(sizes):
            stages += [nn.Linear(before, after), nn.ReLU()]
        self.deep = nn.Sequential(*stages)
        self.logits = nn.Linear(width + sizes[-1], len(self.tasks))
        _xavier(self)

    def forward(self, token: Tensor, state: Tensor, categorical: Tensor, numeric: Tensor) -> dict[str, Tensor]:
        """Logits ``{task: [N]}``; see :meth:`scores`."""
        return dict(self.scores(token, state, categorical, numeric).logits)

    def scores(self, token: Tensor, state: Tensor, categorical: Tensor, numeric: Tensor) -> Scores:
        """Logits ``{task: [N]}``, and as hidden activations ``token`` and ``state`` as given and ``head``.

        ``head`` is ``[N, H]``, what the MLP's last hidden layer gives; without hidden layers it is what the MLP reads.

        Args:
            token: ``[N, D]`` candidate tokens after the last layer.
            state: ``[N, D]`` newest visible event after the last layer; zeros where a row sees none.
            categorical: ``[N, Fc]`` int64. numeric: ``[N, Fn]``.
        """
        given = {"state": state, "token": token}
        token, state = normalise(token), normalise(state)
        first = torch.cat([self.features(categorical), numeric.to(token.dtype), token, state], dim=1)
        crossed = first
        for layer in self.cross:
            crossed = layer(first, crossed)
        deep = self.deep(torch.cat([first, token * state], dim=1))
        logits = self.logits(torch.cat([crossed, deep], dim=1))
        answer = dict(zip(self.tasks, logits.unbind(1), strict=True))
        return Scores(answer, {**given, "head": deep})


def _read(schema: Schema, leave_out: Sequence[str]) -> list[str]:
    names = [feature.name for feature in schema.categorical]
    unknown = [
        Problem(
            "teacher.leave_out", f"unknown feature {name!r}{suggest(name, names)}; the dataset has {', '.join(names)}"
        )
        for name in leave_out
        if name not in names
    ]
    if unknown:
        raise ConfigError(unknown)
    return [name for name in names if name not in leave_out]


def _xavier(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module
