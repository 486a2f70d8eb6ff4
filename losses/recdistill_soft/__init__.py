"""Pointwise losses: binary cross-entropy (the default), KL at a temperature, MSE (an ablation), and the residual."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recdistill_core import BuildContext, Component, hookimpl
from recdistill_core.schedule import RampConfig

if TYPE_CHECKING:
    from recdistill_core import DistillationLoss


@dataclass(frozen=True)
class SoftCEConfig:
    """Soft-label cross-entropy has nothing to set."""


@dataclass(frozen=True)
class KLConfig:
    """KL divergence at a temperature.

    Attributes:
        temperature: ``tau`` in [0.01, 100]; above 1 it softens both sides.
        ramp: where the temperature goes during training: ``{to: 1.0, steps: 10000}``; default: it stays.
    """

    temperature: float = 1.0
    ramp: RampConfig | None = None

    def __post_init__(self) -> None:
        for name, value in (("temperature", self.temperature), ("ramp.to", self.ramp.to if self.ramp else 1.0)):
            if not (math.isfinite(value) and 0.01 <= value <= 100.0):
                raise ValueError(f"{name} must lie in [0.01, 100], got {value}")


@dataclass(frozen=True)
class MSEConfig:
    """Squared error of probabilities has nothing to set."""


@dataclass(frozen=True)
class ResidualConfig:
    """The teacher's correction of the student's residual.

    Attributes:
        task: whose labels decide; may be left out where the loss is built for one task, as a run builds it.
    """

    task: str = ""


def build_soft_ce(config: SoftCEConfig, context: BuildContext) -> DistillationLoss:
    """The loss :class:`recdistill_soft.loss.SoftCrossEntropy`."""
    from recdistill_soft.loss import SoftCrossEntropy

    return SoftCrossEntropy()


def build_kl(config: KLConfig, context: BuildContext) -> DistillationLoss:
    """The loss :class:`recdistill_soft.loss.TemperatureKL`."""
    from recdistill_soft.loss import TemperatureKL

    return TemperatureKL(config.temperature, config.ramp)


def build_mse(config: MSEConfig, context: BuildContext) -> DistillationLoss:
    """The loss :class:`recdistill_soft.loss.ProbabilityMSE`."""
    from recdistill_soft.loss import ProbabilityMSE

    return ProbabilityMSE()


def build_residual(config: ResidualConfig, context: BuildContext) -> DistillationLoss:
    """The loss :class:`recdistill_soft.residual.Residual`."""
    from recdistill_core.errors import UsageError
    from recdistill_soft.residual import Residual

    tasks = context.tasks
    if config.task and tasks and config.task not in tasks:
        raise UsageError(
            f"the residual loss was set to read the labels of task {config.task!r}, and is built for another one",
            where=f"tasks: {', '.join(tasks)}",
            fix="leave its task out; a run builds one loss for each task",
        )
    if not config.task and len(tasks) != 1:
        raise UsageError(
            f"the residual loss reads the labels of one task, and {len(tasks)} were named",
            where=f"tasks: {', '.join(tasks) or 'none'}",
            fix="set its task, or build it with a context of one task",
        )
    return Residual(config.task or tasks[0])


@hookimpl
def recdistill_losses() -> list[Component]:
    """``soft_ce``, ``kl``, ``mse`` and ``residual``."""
    return [
        Component(
            "soft_ce", SoftCEConfig, build_soft_ce, "Binary cross-entropy on the teacher's probability", api_version=1
        ),
        Component(
            "kl",
            KLConfig,
            build_kl,
            "tau^2 * KL(teacher || student) with both logits divided by tau",
            example={"temperature": 2.0},
            api_version=1,
        ),
        Component(
            "mse",
            MSEConfig,
            build_mse,
            "Squared error of probabilities; ablation, its gradient vanishes",
            api_version=1,
        ),
        Component(
            "residual",
            ResidualConfig,
            build_residual,
            "KL on rows whose label bears the teacher's correction out, over the label's probability",
            example={"task": "click"},
            expected_failures={
                "hard_labels_do_not_matter": "the label decides which corrections are learnt; it reaches no logit"
            },
            api_version=1,
        ),
    ]
