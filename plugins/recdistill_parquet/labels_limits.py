"""What values a label store takes; imports nothing heavy, as configurations check it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a store takes.

    Attributes:
        max_abs_logit: a logit beyond it is set aside, as NaN and infinite ones are.
        max_quarantined: share of the rows that may be set aside, in [0, 1]; beyond it nothing is committed.
        max_drift: population stability index between a batch and the first rows of its version beyond which the batch
            is set aside; 0: not looked at. 0.25 is commonly called a large shift. A teacher that learns from scratch
            drifts by nature, so this is for teachers that are done learning.
    """

    max_abs_logit: float = 40.0
    max_quarantined: float = 0.001
    max_drift: float = 0.0

    def __post_init__(self) -> None:
        if not self.max_abs_logit > 0:
            raise ValueError(f"max_abs_logit must be > 0, got {self.max_abs_logit}")
        if not 0 <= self.max_quarantined <= 1:
            raise ValueError(f"max_quarantined must lie in [0, 1], got {self.max_quarantined}")
        if not self.max_drift >= 0:
            raise ValueError(f"max_drift must be >= 0, got {self.max_drift}")
