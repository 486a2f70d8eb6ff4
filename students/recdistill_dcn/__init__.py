"""Student ``dcn``: DCN-v2 (Wang et al., WWW 2021, arXiv 2008.13535), full-rank or low-rank, parallel with an MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recdistill_core import BuildContext, Component, hookimpl


@dataclass(frozen=True)
class DCNConfig:
    """Configuration of :class:`recdistill_dcn.model.DCN`.

    Attributes:
        embedding: width of each embedding. cross_layers: number of cross layers, >= 1.
        rank: rank of each cross layer's matrix, 0 for full rank. hidden: widths of the parallel dense layers.
        tower: width of a tower's hidden layer, 0 for a linear tower. recent: newest events pooled.
        dropout: after each dense layer, in [0, 1).
    """

    embedding: int = 8
    cross_layers: int = 2
    rank: int = 0
    hidden: tuple[int, ...] = (64, 32)
    tower: int = 16
    recent: int = 10
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.embedding < 1 or self.cross_layers < 1:
            raise ValueError(
                f"embedding and cross_layers must be >= 1, got embedding {self.embedding}, "
                f"cross_layers {self.cross_layers}"
            )
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden needs one or more widths >= 1, got {list(self.hidden)}")
        if min(self.tower, self.recent, self.rank) < 0:
            raise ValueError(
                f"tower, recent and rank must be >= 0, got tower {self.tower}, recent {self.recent}, rank {self.rank}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


def build(config: DCNConfig, context: BuildContext) -> Any:
    """A :class:`recdistill_dcn.model.DCN`."""
    from recdistill_dcn.model import DCN

    return DCN(config, context.require_schema(), context.tasks)


@hookimpl
def recdistill_students() -> list[Component]:
    """``dcn``."""
    example = {"embedding": 4, "cross_layers": 2, "rank": 3, "hidden": [8, 4], "tower": 4, "recent": 3}
    return [Component("dcn", DCNConfig, build, "DCN-v2 cross network beside dense layers", example, api_version=1)]
