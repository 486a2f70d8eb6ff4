"""A budget for teacher labels: samplers choose which examples are worth one, a discriminator rejects unreliable ones.

Registers the samplers ``random``, ``uncertainty`` and ``k_center`` and the verbs ``labels select`` and
``labels discriminate``. After WaveCoder (arXiv 2312.14187, there: instructions for a language model).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recdistill_core import BuildContext, Command, Component, hookimpl

if TYPE_CHECKING:
    from recdistill_core.sampler import Sampler


@dataclass(frozen=True)
class RandomConfig:
    """Nothing to set."""


@dataclass(frozen=True)
class UncertaintyConfig:
    """Which probability counts as uncertain.

    Attributes:
        task: whose logit to look at; empty: the only task, or the first one.
        centre: examples whose probability has its logit nearest to this one's come first, in (0, 1); 0.5 orders by
            entropy. For rare positives a centre near the decision threshold is of more use.
        random_share: share of the budget that is drawn from the other examples at random, in [0, 1).
    """

    task: str = ""
    centre: float = 0.5
    random_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.centre < 1.0:
            raise ValueError(f"centre must lie in (0, 1), got {self.centre}")
        if not 0.0 <= self.random_share < 1.0:
            raise ValueError(f"random_share must lie in [0, 1), got {self.random_share}")


@dataclass(frozen=True)
class KCenterConfig:
    """How far apart the chosen examples lie, and at what cost.

    Attributes:
        standardise: scale every column of the embedding to variance 1, so that none counts more for its unit.
        partition_rows: examples are dealt at random into equal parts of at most so many rows, each with its share of
            the budget, since cost and memory grow with the part; 0: one part.
    """

    standardise: bool = True
    partition_rows: int = 4096

    def __post_init__(self) -> None:
        if self.partition_rows < 0 or self.partition_rows == 1:
            raise ValueError(f"partition_rows must be 0 or at least 2, got {self.partition_rows}")


def _random(config: RandomConfig, context: BuildContext) -> Sampler:
    from recdistill_select.samplers import RandomSampler

    return RandomSampler()


def _uncertainty(config: UncertaintyConfig, context: BuildContext) -> Sampler:
    from recdistill_select.samplers import UncertaintySampler

    return UncertaintySampler(config)


def _k_center(config: KCenterConfig, context: BuildContext) -> Sampler:
    from recdistill_select.k_center import KCenterSampler

    return KCenterSampler(config)


def _lazy(name: str) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module("recdistill_select.commands"), name)


@hookimpl
def recdistill_samplers() -> list[Component]:
    """``random``, ``uncertainty`` and ``k_center``."""
    return [
        Component(
            "random", RandomConfig, _random, "Examples at random: what every other sampler must beat", api_version=1
        ),
        Component(
            "uncertainty",
            UncertaintyConfig,
            _uncertainty,
            "Examples of whose outcome the cheap model is least sure",
            example={"random_share": 0.25},
            api_version=1,
        ),
        Component(
            "k_center",
            KCenterConfig,
            _k_center,
            "Examples that lie far apart in the cheap model's embedding (K-Center-Greedy)",
            example={"partition_rows": 16},
            api_version=1,
        ),
    ]


@hookimpl
def recdistill_commands() -> list[Command]:
    """``labels select`` and ``labels discriminate``."""
    return [
        Command("labels select", _lazy("select"), "Choose the examples that are worth a teacher's label."),
        Command("labels discriminate", _lazy("discriminate"), "Find labels that the outcomes nearby speak against."),
    ]
