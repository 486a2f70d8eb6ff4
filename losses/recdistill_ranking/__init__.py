"""Losses over the rows of one request: ListNet, CLID, Ranking Distillation, RRD, RCE-KD and UnKD."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recdistill_core import BuildContext, Component, hookimpl

if TYPE_CHECKING:
    from recdistill_core import DistillationLoss

#: Every one of them compares rows of a request.
NEEDS = frozenset({"request_groups"})


def _inside(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")


@dataclass(frozen=True)
class ListNetConfig:
    """ListNet on logits.

    Attributes:
        temperature: ``tau`` in [0.01, 100]; above 1 it softens both sides.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        _inside("temperature", self.temperature, 0.01, 100)


@dataclass(frozen=True)
class CLIDConfig:
    """Calibration-compatible listwise distillation.

    Attributes:
        mass: multiply each request by the teacher's expected number of positives in it; false as published.
    """

    mass: bool = False


@dataclass(frozen=True)
class RankingDistillationConfig:
    """Ranking Distillation.

    Attributes:
        k: rows of a request that count as positives, in [1, 1000].
        decay: places in which a row's weight falls to 1/e, in [0.1, 1000]; the paper's lambda.
        mu: slope of the weight for rows that the student places too low, in [0, 100]; 0 leaves it out.
    """

    k: int = 5
    decay: float = 5.0
    mu: float = 0.0

    def __post_init__(self) -> None:
        _inside("k", self.k, 1, 1000)
        _inside("decay", self.decay, 0.1, 1000)
        _inside("mu", self.mu, 0, 100)


@dataclass(frozen=True)
class RRDConfig:
    """Relaxed ranking distillation.

    Attributes:
        interesting: rows at the top of the teacher's order whose order is learnt, in [1, 1000].
        uninteresting: rows at its end that only have to stand below them, in [0, 100000].
    """

    interesting: int = 5
    uninteresting: int = 20

    def __post_init__(self) -> None:
        _inside("interesting", self.interesting, 1, 1000)
        _inside("uninteresting", self.uninteresting, 0, 100_000)


@dataclass(frozen=True)
class RCEKDConfig:
    """Rejuvenated cross-entropy.

    Attributes:
        k: rows at the top of each side's order, in [1, 1000].
        beta: how fast agreement on them moves weight to their order, in [0.01, 100].
        temperature: ``tau`` in [0.01, 100] of the softmaxes.
    """

    k: int = 5
    beta: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _inside("k", self.k, 1, 1000)
        _inside("beta", self.beta, 0.01, 100)
        _inside("temperature", self.temperature, 0.01, 100)


@dataclass(frozen=True)
class UnKDConfig:
    """Pairs within groups of like popularity.

    Attributes:
        groups: groups of items with about equal shares of the impressions, in [1, 1000].
        decay: places in which a row's probability to be drawn falls to 1/e, in [0.1, 1000]; the paper's mu.
    """

    groups: int = 4
    decay: float = 20.0

    def __post_init__(self) -> None:
        _inside("groups", self.groups, 1, 1000)
        _inside("decay", self.decay, 0.1, 1000)


def build_listnet(config: ListNetConfig, context: BuildContext) -> DistillationLoss:
    """The loss :class:`recdistill_ranking.listwise.ListNet`."""
    from recdistill_ranking.listwise import ListNet

    return ListNet(config.temperature)


def build_clid(config: CLIDConfig, context: BuildContext) -> DistillationLoss:
    """The loss :class:`recdistill_ranking.listwise.CLID`."""
    from recdistill_ranking.listwise import CLID

    return CLID(config.mass)


def build_ranking_distillation(config: RankingDistillationConfig, context: BuildContext) -> DistillationLoss:
    """The loss :class:`recdistill_ranking.topk.RankingDistillation`."""
    from recdistill_ranking.topk import RankingDistillation

    return RankingDistillation(config.k, config.decay, config.mu)


def build_rrd(config: RRDConfig, context: BuildContext) -> DistillationLoss:
    """The loss :class:`recdistill_ranking.topk.RelaxedRanking`."""
    from recdistill_ranking.topk import RelaxedRanking

    return RelaxedRanking(config.interesting, config.uninteresting)


def build_rce_kd(config: RCEKDConfig, context: BuildContext) -> DistillationLoss:
    """The loss :class:`recdistill_ranking.listwise.RejuvenatedCE`."""
    from recdistill_ranking.listwise import RejuvenatedCE

    return RejuvenatedCE(config.k, config.beta, config.temperature)


def build_unkd(config: UnKDConfig, context: BuildContext) -> DistillationLoss:
    """The loss :class:`recdistill_ranking.popularity.UnKD`; the schema tells the size of the item vocabulary."""
    from recdistill_ranking.popularity import UnKD

    return UnKD(context.require_schema().num_items, config.groups, config.decay)


@hookimpl
def recdistill_losses() -> list[Component]:
    """``listnet``, ``clid``, ``ranking_distillation``, ``rrd``, ``rce_kd`` and ``unkd``."""
    return [
        Component(
            "listnet",
            ListNetConfig,
            build_listnet,
            "tau^2 * KL of softmaxes over a request",
            example={"temperature": 2.0},
            needs=NEEDS,
            api_version=1,
        ),
        Component(
            "clid",
            CLIDConfig,
            build_clid,
            "KL of a request's normalised probabilities; keeps calibration",
            needs=NEEDS,
            api_version=1,
        ),
        Component(
            "ranking_distillation",
            RankingDistillationConfig,
            build_ranking_distillation,
            "The teacher's top k rows as positives, weighted by exp(-rank / decay)",
            example={"k": 2, "decay": 2.0},
            needs=NEEDS,
            api_version=1,
        ),
        Component(
            "rrd",
            RRDConfig,
            build_rrd,
            "Order of the teacher's top rows, over the rest without an order",
            example={"interesting": 2, "uninteresting": 2},
            needs=NEEDS,
            api_version=1,
        ),
        Component(
            "rce_kd",
            RCEKDConfig,
            build_rce_kd,
            "KL over the student's top rows, and over those of the teacher's that it misses",
            example={"k": 2},
            needs=NEEDS,
            api_version=1,
        ),
        Component(
            "unkd",
            UnKDConfig,
            build_unkd,
            "Pairs in the teacher's order among items of like popularity",
            example={"groups": 2},
            needs=NEEDS,
            api_version=1,
        ),
    ]
