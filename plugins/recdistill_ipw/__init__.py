"""Inverse propensity weighting: rows that were unlikely to be shown count for those that were not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recdistill_core import BuildContext, Component, hookimpl

if TYPE_CHECKING:
    from recdistill_core import Debiaser


@dataclass(frozen=True)
class IpwConfig:
    """Weights from logged propensities.

    Attributes:
        clip: propensities below it count as it, in (0, 1]; bounds the largest weight by ``1 / clip``.
        snips: divide by the mean weight of the training data (self-normalised).
        min_effective_share: warn where the effective sample size is below this share of the rows, in [0, 1].
    """

    clip: float = 0.01
    snips: bool = True
    min_effective_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.clip <= 1.0:
            raise ValueError(f"clip must lie in (0, 1], got {self.clip}")
        if not 0.0 <= self.min_effective_share <= 1.0:
            raise ValueError(f"min_effective_share must lie in [0, 1], got {self.min_effective_share}")


def build(config: IpwConfig, context: BuildContext) -> Debiaser:
    """The debiaser :class:`recdistill_ipw.debias.Ipw`."""
    from recdistill_ipw.debias import Ipw

    return Ipw(context.tasks, clip=config.clip, snips=config.snips, min_effective_share=config.min_effective_share)


@hookimpl
def recdistill_debiasers() -> list[Component]:
    """``ipw``."""
    return [
        Component(
            "ipw",
            IpwConfig,
            build,
            "Weights rows by 1 / propensity, clipped and self-normalised",
            needs=frozenset({"propensity"}),
            api_version=1,
        )
    ]
