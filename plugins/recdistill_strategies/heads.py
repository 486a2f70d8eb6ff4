"""The two basic head strategies."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from recdistill_core.interfaces import HeadStrategy, LossParts


class RecDistill(HeadStrategy):
    """Decoupled towers (Rec-Distill, arXiv 2605.29755).

    ``L = hard(main) + hard(auxiliary) + alpha * soft(auxiliary)``. The main tower's parameters get no gradient from
    the teacher; the teacher reaches what is served through the shared backbone only.
    """

    auxiliary = ("auxiliary",)

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> dict[str, Tensor]:
        """See :meth:`HeadStrategy.terms`."""
        return {
            "main/hard": parts.hard(heads["main"]),
            "auxiliary/hard": parts.hard(heads["auxiliary"]),
            "auxiliary/soft": self.alpha * parts.soft(heads["auxiliary"]),
        }


class Single(HeadStrategy):
    """One head, the served one: ``L = hard(main) + alpha * soft(main)``; classic distillation, no auxiliary tower."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> dict[str, Tensor]:
        """See :meth:`HeadStrategy.terms`."""
        return {"main/hard": parts.hard(heads["main"]), "main/soft": self.alpha * parts.soft(heads["main"])}
