"""The parts of a run configuration that say how models are trained, and what from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainingConfig:
    """One model's training; see ``Optimisation``, ``ReadOrder`` and ``Phases`` of :mod:`recdistill_lightning`."""

    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: bool = False
    batch_size: int = 2048
    window_hours: float = 24.0
    within: str = "shuffle"
    batch_epochs: int = 1

    def __post_init__(self) -> None:
        from recdistill_lightning import Optimisation, ReadOrder

        if self.batch_epochs < 1:
            raise ValueError(f"batch_epochs must be >= 1, got {self.batch_epochs}")
        Optimisation(self.lr, self.weight_decay, self.warmup_steps, self.decay)
        ReadOrder(self.batch_size, self.window_hours, self.within)


@dataclass(frozen=True)
class RawTrainingConfig:
    """Where a raw student's training differs from ``student_training``, so that each side has settings chosen for it.

    Attributes:
        lr, weight_decay, batch_epochs: None: as in ``student_training``.
    """

    lr: float | None = None
    weight_decay: float | None = None
    batch_epochs: int | None = None


@dataclass(frozen=True)
class TeacherTrainingConfig(TrainingConfig):
    """As :class:`TrainingConfig`, but read by user: in a shuffled window labels would leak through histories."""

    within: str = "user"

    def __post_init__(self) -> None:
        from recdistill_lightning.order import SHUFFLED

        super().__post_init__()
        if self.within in SHUFFLED and self.window_hours > 0:
            raise ValueError(
                "within must be user or time for a teacher: in a shuffled window it could be trained on a later row of "
                "a user, whose history holds the label of a row that is captured only then"
            )


@dataclass(frozen=True)
class PretrainedConfig:
    """What the teacher takes over from a sequence model that ``teacher pretrain`` has trained (GPSD, arXiv 2506.03699).

    Attributes:
        path: its folder; empty: nothing is taken over.
        transfer: regular expressions; a parameter that one of them finds in its name is loaded.
        freeze: regular expressions; what is loaded and found by one of them is not trained. Of an embedding table only
            the rows of values that pre-training has seen are loaded, and only they are frozen.
    """

    path: str = ""
    transfer: list[str] = field(default_factory=lambda: ["^tokens\\."])
    freeze: list[str] = field(default_factory=lambda: ["^tokens\\."])

    def __post_init__(self) -> None:
        for name in ("transfer", "freeze"):
            for pattern in getattr(self, name):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{name} holds {pattern!r}, which is no regular expression: {error}") from error
        if not self.transfer:
            raise ValueError("transfer needs at least one regular expression; an empty path takes nothing over")
