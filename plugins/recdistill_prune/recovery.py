"""Distillation that waits for recovery."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from recdistill_core.interfaces import HeadStrategy, LossParts
from recdistill_prune.callbacks import IdeaPrune


class InRecovery(HeadStrategy):
    """The main tower on hard labels until the last cut is made, and from then on another strategy.

    Args:
        strategy: how teacher labels reach the student in recovery. pruning: the callback of the same fit.
    """

    def __init__(self, strategy: HeadStrategy, pruning: IdeaPrune) -> None:
        super().__init__()
        self.strategy, self.pruning = strategy, pruning
        self.auxiliary = strategy.auxiliary

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> dict[str, Tensor]:
        """See :meth:`HeadStrategy.terms`."""
        if self.pruning.recovering:
            return self.strategy.terms(heads, parts)
        return {"main/hard": parts.hard(heads["main"])}
