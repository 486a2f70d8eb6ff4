"""Position bias: an additive tower over the position, or the examination model of PAL. Neither is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recdistill_core import BuildContext, Component, hookimpl

if TYPE_CHECKING:
    from recdistill_core import Debiaser


@dataclass(frozen=True)
class PositionTowerConfig:
    """Additive position bias.

    Attributes:
        positions: number of distinct positions, 2 to 10,000; rows further down share the last one.
        drop: probability in [0, 1) with which a training row's position is hidden.
        min_variation: warn where the position of an item varies less than this share of all variation, in [0, 1].
    """

    positions: int = 50
    drop: float = 0.1
    min_variation: float = 0.1

    def __post_init__(self) -> None:
        _check_shared(self.positions, self.min_variation)
        if not 0.0 <= self.drop < 1.0:
            raise ValueError(f"drop must lie in [0, 1), got {self.drop}")


@dataclass(frozen=True)
class PalConfig:
    """Examination times relevance.

    Attributes:
        positions: as in :class:`PositionTowerConfig`.
        initial: examination probability of every position but the top before training, in (0, 1).
        min_variation: as in :class:`PositionTowerConfig`.
    """

    positions: int = 50
    initial: float = 0.5
    min_variation: float = 0.1

    def __post_init__(self) -> None:
        _check_shared(self.positions, self.min_variation)
        if not 0.0 < self.initial < 1.0:
            raise ValueError(f"initial must lie in (0, 1), got {self.initial}")


def _check_shared(positions: int, min_variation: float) -> None:
    if not 2 <= positions <= 10_000:
        raise ValueError(f"positions must lie in [2, 10000], got {positions}")
    if not 0.0 <= min_variation <= 1.0:
        raise ValueError(f"min_variation must lie in [0, 1], got {min_variation}")


def build_tower(config: PositionTowerConfig, context: BuildContext) -> Debiaser:
    """The debiaser :class:`recdistill_position.debias.PositionTower`."""
    from recdistill_position.debias import PositionTower

    return PositionTower(
        context.tasks, positions=config.positions, drop=config.drop, min_variation=config.min_variation
    )


def build_pal(config: PalConfig, context: BuildContext) -> Debiaser:
    """The debiaser :class:`recdistill_position.debias.Pal`."""
    from recdistill_position.debias import Pal

    return Pal(context.tasks, positions=config.positions, initial=config.initial, min_variation=config.min_variation)


@hookimpl
def recdistill_debiasers() -> list[Component]:
    """``position_tower`` and ``pal``."""
    needs = frozenset({"position"})
    return [
        Component(
            "position_tower",
            PositionTowerConfig,
            build_tower,
            "Adds a learnt bias per position in training; absent when served",
            needs=needs,
            api_version=1,
        ),
        Component(
            "pal",
            PalConfig,
            build_pal,
            "P(click) = P(seen | position) * P(click | seen); serves the second factor",
            needs=needs,
            api_version=1,
        ),
    ]
