"""Head strategies: how teacher labels reach the student."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from recdistill_core import BuildContext, Component, hookimpl
from recdistill_core.schedule import RampConfig

#: What a row's soft loss is weighed by; see :mod:`recdistill_strategies.confidence`.
CONFIDENCES = ("none", "entropy", "calibration")


@dataclass(frozen=True)
class SoftConfig:
    """How much the teacher counts.

    Attributes:
        alpha: weight of the distillation loss beside the task loss, finite and >= 0; not tied to ``1 - alpha``.
        ramp: where alpha goes during training: ``{to: 0.0, steps: 10000, shape: cosine}``; default: it stays.
        confidence: how a row's soft loss is weighed: ``none``, ``entropy`` (the surer the teacher, the more) or
            ``calibration`` (the better the teacher's probabilities of this size have been borne out, the more).
    """

    alpha: float = 1.0
    ramp: RampConfig | None = None
    confidence: str = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha must be finite and >= 0, got {self.alpha}")
        if self.ramp is not None and self.ramp.to < 0:
            raise ValueError(f"ramp.to must be >= 0 for alpha, got {self.ramp.to}")
        if self.confidence not in CONFIDENCES:
            raise ValueError(f"confidence must be one of {', '.join(CONFIDENCES)}, got {self.confidence!r}")


@dataclass(frozen=True)
class AuxiliaryConfig(SoftConfig):
    """A soft-label head as in ExFM (arXiv 2502.17494).

    Attributes:
        label_scale: ``a`` > 0: the head learns ``min(a * p_T, 1)``.
        gradient_scale: ``b`` >= 0: the backbone gets ``b`` times the head's gradient, the head itself the whole.
    """

    label_scale: float = 1.0
    gradient_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.label_scale < math.inf:
            raise ValueError(f"label_scale must be finite and > 0, got {self.label_scale}")
        if not 0 <= self.gradient_scale < math.inf:
            raise ValueError(f"gradient_scale must be finite and >= 0, got {self.gradient_scale}")


@dataclass(frozen=True)
class AdapterConfig(AuxiliaryConfig):
    """A soft-label head and another one that learns from an adapter (ExFM, arXiv 2502.17494).

    Attributes:
        beta: weight of the adapted head's loss, finite and >= 0.
        hidden: width of the adapter's hidden layer, >= 1.
        lr: learning rate of the adapter, > 0.
    """

    beta: float = 1.0
    hidden: int = 16
    lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta must be finite and >= 0, got {self.beta}")
        if self.hidden < 1:
            raise ValueError(f"hidden must be >= 1, got {self.hidden}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be finite and > 0, got {self.lr}")


@dataclass(frozen=True)
class TeachersConfig(SoftConfig):
    """Several teachers at once.

    Attributes:
        weights: of the teachers, in the order of ``labels.versions``, >= 0; ``own`` is as many as the run has teachers,
            or out of fold as these have copies. Empty: equal ones.
        learned: whether the weights are learnt, from where ``weights`` begin, which must then be there.
        lr: learning rate of learnt weights, > 0.
    """

    weights: list[float] = field(default_factory=list)
    learned: bool = False
    lr: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= weight < math.inf for weight in self.weights) or (self.weights and not any(self.weights)):
            raise ValueError(f"weights must be finite and >= 0, one of them more than 0, got {list(self.weights)}")
        if self.learned and not (self.weights and all(self.weights)):
            raise ValueError(f"learned weights begin somewhere: give one > 0 per teacher, got {list(self.weights)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be finite and > 0, got {self.lr}")


def build_rec_distill(config: SoftConfig, context: BuildContext) -> Any:
    """A :class:`recdistill_strategies.heads.RecDistill`."""
    from recdistill_strategies.heads import RecDistill

    return RecDistill(config)


def build_single(config: SoftConfig, context: BuildContext) -> Any:
    """A :class:`recdistill_strategies.heads.Single`."""
    from recdistill_strategies.heads import Single

    return Single(config)


def build_exfm_aux(config: AuxiliaryConfig, context: BuildContext) -> Any:
    """A :class:`recdistill_strategies.exfm.SoftHead`."""
    from recdistill_strategies.exfm import SoftHead

    return SoftHead(config)


def build_student_adapter(config: AdapterConfig, context: BuildContext) -> Any:
    """A :class:`recdistill_strategies.exfm.StudentAdapter`."""
    from recdistill_strategies.exfm import StudentAdapter

    return StudentAdapter(config)


def build_multi_teacher(config: TeachersConfig, context: BuildContext) -> Any:
    """A :class:`recdistill_strategies.teachers.MultiTeacher`."""
    from recdistill_strategies.teachers import MultiTeacher

    return MultiTeacher(config)


@hookimpl
def recdistill_strategies() -> list[Component]:
    """``rec_distill``, ``single``, ``exfm_aux``, ``student_adapter`` and ``multi_teacher``."""
    made: dict[str, tuple[type, Callable[[Any, BuildContext], Any], str]] = {
        "rec_distill": (
            SoftConfig,
            build_rec_distill,
            "Main tower on hard labels, auxiliary tower on hard and soft labels",
        ),
        "single": (SoftConfig, build_single, "Hard and soft labels on the one served head"),
        "exfm_aux": (
            AuxiliaryConfig,
            build_exfm_aux,
            "Main tower on hard labels, auxiliary tower on soft labels",
        ),
        "student_adapter": (
            AdapterConfig,
            build_student_adapter,
            "exfm_aux, and a tower that learns from an adapter which fits the teacher to fresh labels",
        ),
        "multi_teacher": (
            TeachersConfig,
            build_multi_teacher,
            "rec_distill from several teachers (labels.policy all_of), with fixed or learnt weights",
        ),
    }
    teacher = frozenset({"teacher"})
    return [
        Component(name, config, build, summary, needs=teacher, api_version=1)
        for name, (config, build, summary) in made.items()
    ]
