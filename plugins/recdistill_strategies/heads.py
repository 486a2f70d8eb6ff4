"""Strategies with one soft term: on an auxiliary tower, or on the served head itself."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from recdistill_core.interfaces import HeadStrategy, LossParts
from recdistill_core.strategy import Ramp
from recdistill_strategies import SoftConfig
from recdistill_strategies.confidence import confidence


class Soft(HeadStrategy):
    """What the strategies share: ``alpha``, which may change, times a loss that may be weighed by confidence."""

    def __init__(self, config: SoftConfig) -> None:
        super().__init__()
        self.alpha = Ramp(config.alpha, config.ramp)
        self.confidence = confidence(config.confidence)

    def soft(self, logit: Tensor, parts: LossParts, target: Tensor | None = None, some: Tensor | None = None) -> Tensor:
        """``[N]`` alpha times the distillation loss of a head's logits ``[N]``.

        Args:
            logit: ``[N]``. parts: of the batch. target: ``[N]`` what to learn in place of the teacher's logits.
            some: ``[N]`` bool, the rows that count; with a ``target``, the confidence is in that. None: all of them.
        """
        weight = None if some is None else some.to(logit.dtype)
        if self.confidence is not None:
            teacher, valid = parts.teacher()
            judged = (teacher, valid) if some is None or target is None else (target.detach(), some)
            trust = self.confidence(*judged, *parts.label())
            weight = trust if weight is None else weight * trust
        return self.alpha.value() * parts.soft(logit, target=target, weight=weight)


class RecDistill(Soft):
    """Decoupled towers (Rec-Distill, arXiv 2605.29755).

    ``L = hard(main) + hard(auxiliary) + alpha * soft(auxiliary)``. The main tower's parameters get no gradient from
    the teacher; the teacher reaches what is served through the shared backbone only.
    """

    auxiliary = ("auxiliary",)

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> dict[str, Tensor]:
        """See :meth:`HeadStrategy.terms`."""
        return {
            "main/hard": parts.hard(heads["main"]),
            "auxiliary/hard": parts.hard(heads["auxiliary"]),
            "auxiliary/soft": self.soft(heads["auxiliary"], parts),
        }


class Single(Soft):
    """One head, the served one: ``L = hard(main) + alpha * soft(main)``; classic distillation, no auxiliary tower."""

    def terms(self, heads: Mapping[str, Tensor], parts: LossParts) -> dict[str, Tensor]:
        """See :meth:`HeadStrategy.terms`."""
        return {"main/hard": parts.hard(heads["main"]), "main/soft": self.soft(heads["main"], parts)}
