"""What a look at a label store finds, and the measures of how labels change and how well they predict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: ``progress(done, of)``, called now and then.
Progress = Callable[[int, int], None]


class Severity(StrEnum):
    """``ERROR``: labels are lost or wrong. ``WARNING``: look at it. ``INFO``: a fact."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Finding:
    """One thing that ``verify`` has to say.

    Attributes:
        severity: how bad it is.
        check: ``log``, ``segment``, ``keys``, ``quarantine``, ``pin``, ``leftover``, ``unknown``, ``view``, ``drift``
            or ``calibration``.
        where: the file, or the version and task.
        what: a sentence.
        value: the measure, or None.
    """

    severity: Severity
    check: str
    where: str
    what: str
    value: float | None = None


@dataclass(frozen=True)
class Thresholds:
    """From where on a measure is worth a warning.

    Attributes:
        drift: population stability index between the first and the last third of a version's labels.
        calibration: relative difference between the mean probability and the rate of positives, where it cannot be
            chance (more than 4 standard errors).
        quarantined: share of a version's rows that were set aside.
    """

    drift: float = 0.25
    calibration: float = 0.1
    quarantined: float = 0.0005

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise ValueError(f"{name} must be >= 0, got {value}")


@dataclass(frozen=True)
class Calibration:
    """Teacher logits against outcomes.

    Attributes:
        rows: labels that have an outcome. predicted: mean probability. observed: share of positives.
        error: expected calibration error over deciles of the probability.
    """

    rows: int
    predicted: float
    observed: float
    error: float

    @property
    def deviation(self) -> float:
        """Relative difference of ``predicted`` from ``observed``."""
        return abs(self.predicted - self.observed) / max(self.observed, 1e-12)

    @property
    def significant(self) -> bool:
        """Whether the difference is more than 4 standard errors of the observed share."""
        spread = np.sqrt(max(self.predicted * (1 - self.predicted), 1e-12) / max(self.rows, 1))
        return bool(abs(self.predicted - self.observed) > 4 * spread)


def calibration(logit: NDArray[Any], label: NDArray[Any]) -> Calibration:
    """Compare logits ``[N]`` with labels ``[N]`` of 0 and 1, N > 0."""
    probability = 1 / (1 + np.exp(-logit.astype(np.float64)))
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, 10) if part.size]
    gaps = [part.size * abs(probability[part].mean() - label[part].mean()) for part in parts]
    return Calibration(
        int(label.size), float(probability.mean()), float(label.mean()), float(sum(gaps) / max(label.size, 1))
    )
