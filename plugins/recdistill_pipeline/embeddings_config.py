"""The part of a run configuration that says what students' embeddings learn of the teacher's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

#: When the teacher's embeddings are taken.
MOMENTS = ("student_start", "end")


@dataclass(frozen=True)
class EmbeddingsConfig:
    """What students' embeddings learn of the teacher's (DE, arXiv 2012.04357).

    Attributes:
        weight: of the squared distance beside the other losses, finite and >= 0; 0: none of it.
        experts: projections of which one is chosen for each entity, >= 1.
        of: ``item``, or names of categorical features that teacher and students embed.
        at: ``student_start`` (the teacher's embeddings before it has learnt from any row of the students) or ``end``
            (of its whole training, with the labels of these rows in them; every result is marked).
        temperature, temperature_end: of the choice among experts at the first and the last batch, finite and > 0.
    """

    weight: float = 0.0
    experts: int = 4
    of: list[str] = field(default_factory=lambda: ["item"])
    at: str = "student_start"
    temperature: float = 1.0
    temperature_end: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight must be finite and >= 0, got {self.weight}")
        if self.experts < 1:
            raise ValueError(f"experts must be >= 1, got {self.experts}")
        if not self.of or len(set(self.of)) != len(self.of):
            raise ValueError(f"of must name one or more different kinds, got {self.of}")
        if self.at not in MOMENTS:
            raise ValueError(f"at must be one of {', '.join(MOMENTS)}, got {self.at!r}")
        for name in ("temperature", "temperature_end"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and > 0, got {getattr(self, name)}")
