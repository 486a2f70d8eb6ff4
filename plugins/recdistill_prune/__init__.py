"""Callbacks ``IdeaPrune`` and ``GrowPrune``: students that train wider, or narrower, than they serve.

The trainers ``idea_prune`` and ``grow_prune`` bring them into a run. Importing a name here imports torch; the hook
module itself does not.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recdistill_core import BuildContext, Component, hookimpl
from recdistill_lightning import TrainerConfig

if TYPE_CHECKING:
    from recdistill_prune.callbacks import GrowPrune, IdeaPrune
    from recdistill_prune.neurons import HiddenLayer, hidden_layers, shrink
    from recdistill_prune.recovery import InRecovery
    from recdistill_prune.schedule import OneCosine

_HOMES = {
    "GrowPrune": "callbacks",
    "HiddenLayer": "neurons",
    "IdeaPrune": "callbacks",
    "InRecovery": "recovery",
    "OneCosine": "schedule",
    "hidden_layers": "neurons",
    "shrink": "neurons",
}

__all__ = ["GrowPrune", "HiddenLayer", "IdeaPrune", "InRecovery", "OneCosine", "hidden_layers", "shrink"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"recdistill_prune.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'recdistill_prune' has no attribute {name!r}")


def check_schedule(begin: float, end: float, cuts: int, enlarge: float) -> None:
    """Raise ValueError unless the settings of ``IdeaPrune`` are in range."""
    if not 1.0 < enlarge < math.inf:
        raise ValueError(f"enlarge must be > 1, got {enlarge}")
    if not 0.0 < begin <= end < 1.0:
        raise ValueError(f"begin and end must be shares of the training, 0 < begin <= end < 1, got {begin} and {end}")
    if cuts < 1:
        raise ValueError(f"cuts must be >= 1, got {cuts}")


def check_cycles(keep: float, narrow: float, cycles: int) -> None:
    """Raise ValueError unless the settings of ``GrowPrune`` are in range."""
    if not (0.0 < keep < 1.0 and 0.0 < narrow < 1.0):
        raise ValueError(f"keep and narrow must lie in (0, 1), got {keep} and {narrow}")
    if cycles < 1:
        raise ValueError(f"cycles must be >= 1, got {cycles}")


@dataclass(frozen=True)
class IdeaPruneConfig(TrainerConfig):
    """As ``TrainerConfig``; students train enlarged and end as they are configured, the teacher trains as ever.

    Attributes:
        enlarge: the student has this many times its hidden neurons at first, > 1.
        begin, end: shares of the batches after which the first and the last cut is made, ``0 < begin <= end < 1``.
        cuts: number of cuts, >= 1.
        cosine: the learning rate falls as one cosine to 0, whatever ``student_training.decay`` says.
    """

    enlarge: float = 4.0
    begin: float = 0.25
    end: float = 0.6
    cuts: int = 10
    cosine: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_schedule(self.begin, self.end, self.cuts, self.enlarge)


@dataclass(frozen=True)
class GrowPruneConfig(TrainerConfig):
    """As ``TrainerConfig``; students train in narrow and wide phases and end at full size, the teacher trains as ever.

    Attributes:
        keep: share of the neurons that a narrow phase keeps, in (0, 1).
        narrow: share of the batches that belong to narrow phases, in (0, 1).
        cycles: number of narrow phases, >= 1.
    """

    keep: float = 0.5
    narrow: float = 0.5
    cycles: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cycles(self.keep, self.narrow, self.cycles)


def build_idea_prune(config: IdeaPruneConfig, context: BuildContext) -> Any:
    """A :class:`recdistill_prune.trainer.IdeaPruneTrainer`."""
    from recdistill_prune.trainer import IdeaPruneTrainer

    return IdeaPruneTrainer(config)


def build_grow_prune(config: GrowPruneConfig, context: BuildContext) -> Any:
    """A :class:`recdistill_prune.trainer.GrowPruneTrainer`."""
    from recdistill_prune.trainer import GrowPruneTrainer

    return GrowPruneTrainer(config)


@hookimpl
def recdistill_trainers() -> list[Component]:
    """``idea_prune`` and ``grow_prune``."""
    small = {"accelerator": "cpu", "log_every_n_steps": 2}
    return [
        Component(
            "idea_prune",
            IdeaPruneConfig,
            build_idea_prune,
            "lightning, with students that train enlarged and are pruned to their size",
            {**small, "cuts": 2, "begin": 0.2},
            api_version=1,
        ),
        Component(
            "grow_prune",
            GrowPruneConfig,
            build_grow_prune,
            "lightning, with students that train in narrow and wide phases",
            {**small, "cycles": 1},
            api_version=1,
        ),
    ]
