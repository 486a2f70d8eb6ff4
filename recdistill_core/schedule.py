"""A number that changes as training goes on, such as the weight of a loss or a temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SHAPES = ("linear", "cosine")


@dataclass(frozen=True)
class RampConfig:
    """Where a value goes from where it starts.

    Attributes:
        to: value at the end. steps: updates until then, >= 1; afterwards it stays. shape: ``linear`` or ``cosine``.
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


class Ramp(nn.Module):
    """A value that goes from ``start`` to ``ramp.to`` and stays there; a constant without ``ramp``.

    ``StudentModule`` calls :meth:`advance` after every batch it has trained on. How far it has come is a buffer, so
    that a restored checkpoint goes on where it was.

    Args:
        start: value of the first batch. ramp: where it goes, or None.
    """

    at: Tensor

    def __init__(self, start: float, ramp: RampConfig | None = None) -> None:
        super().__init__()
        self.start, self.ramp = start, ramp
        self.register_buffer("at", torch.zeros((), dtype=torch.int64), persistent=ramp is not None)

    def advance(self) -> None:
        """One more batch is done."""
        if self.ramp is not None:
            self.at += 1

    def value(self) -> float:
        """The value of the batch at hand."""
        if self.ramp is None:
            return self.start
        done = min(int(self.at) / self.ramp.steps, 1.0)
        share = done if self.ramp.shape == "linear" else (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.ramp.to - self.start) * share
