"""Student ``mlp``: embeddings, pooled recent history, dense layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recdistill_core import BuildContext, Component, hookimpl


@dataclass(frozen=True)
class MLPConfig:
    """Configuration of :class:`recdistill_mlp.model.MLP`.

    Attributes:
        embedding: width of each embedding. hidden: widths of the dense layers; the last one is the backbone's width.
        tower: width of a tower's hidden layer, 0 for a linear tower. recent: newest events pooled.
        dropout: after each dense layer, in [0, 1).
    """

    embedding: int = 8
    hidden: tuple[int, ...] = (64, 32)
    tower: int = 16
    recent: int = 10
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.embedding < 1:
            raise ValueError(f"embedding must be >= 1, got {self.embedding}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden needs one or more widths >= 1, got {list(self.hidden)}")
        if self.tower < 0 or self.recent < 0:
            raise ValueError(f"tower and recent must be >= 0, got tower {self.tower}, recent {self.recent}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


def build(config: MLPConfig, context: BuildContext) -> Any:
    """A :class:`recdistill_mlp.model.MLP`."""
    from recdistill_mlp.model import MLP

    return MLP(config, context.require_schema(), context.tasks)


@hookimpl
def recdistill_students() -> list[Component]:
    """``mlp``."""
    example = {"embedding": 4, "hidden": [8, 4], "tower": 4, "recent": 3}
    return [Component("mlp", MLPConfig, build, "Embeddings and dense layers", example, api_version=1)]
