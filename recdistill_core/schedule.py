"""A number that changes as training goes on, such as the weight of a loss or a temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHAPES = ("linear", "cosine")


@dataclass(frozen=True)
class RampConfig:
    """Where a value goes from where it starts.

    Attributes:
        to: value at the end. steps: training batches until then, >= 1; afterwards it stays.
        shape: ``linear`` or ``cosine``.
    """

    to: float
    steps: int
    shape: str = "linear"

    def __post_init__(self) -> None:
        if not math.isfinite(self.to):
            raise ValueError(f"to must be finite, got {self.to}")
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {self.shape!r}")

    def value(self, start: float, done: int) -> float:
        """The value after ``done`` batches, of one that begins at ``start``."""
        share = min(done / self.steps, 1.0)
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return start + (self.to - start) * share
