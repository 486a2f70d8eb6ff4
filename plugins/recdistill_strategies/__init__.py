"""Head strategies: how teacher labels reach the student."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from recdistill_core import BuildContext, Component, hookimpl


@dataclass(frozen=True)
class AlphaConfig:
    """How much the teacher counts.

    Attributes:
        alpha: weight of the distillation loss beside the task loss, finite and >= 0; not tied to ``1 - alpha``.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha must be finite and >= 0, got {self.alpha}")


def build_rec_distill(config: AlphaConfig, context: BuildContext) -> Any:
    """A :class:`recdistill_strategies.heads.RecDistill`."""
    from recdistill_strategies.heads import RecDistill

    return RecDistill(config.alpha)


def build_single(config: AlphaConfig, context: BuildContext) -> Any:
    """A :class:`recdistill_strategies.heads.Single`."""
    from recdistill_strategies.heads import Single

    return Single(config.alpha)


@hookimpl
def recdistill_strategies() -> list[Component]:
    """``rec_distill`` and ``single``."""
    teacher = frozenset({"teacher"})
    return [
        Component(
            "rec_distill",
            AlphaConfig,
            build_rec_distill,
            "Main tower on hard labels, auxiliary tower on hard and soft labels",
            needs=teacher,
            api_version=1,
        ),
        Component(
            "single",
            AlphaConfig,
            build_single,
            "Hard and soft labels on the one served head",
            needs=teacher,
            api_version=1,
        ),
    ]
