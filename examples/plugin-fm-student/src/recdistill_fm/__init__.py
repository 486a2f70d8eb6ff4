"""Registers the student ``fm``; torch is imported in ``build`` and not before."""

from __future__ import annotations

from dataclasses import dataclass

import recdistill_core as rd


@dataclass(frozen=True)
class FmConfig:
    """Settings of :class:`recdistill_fm.student.FmStudent`.

    Attributes:
        embedding: width ``k`` of each field's factors, >= 1.
        recent: newest events that are pooled into one more field, >= 0.
    """

    embedding: int = 8
    recent: int = 10

    def __post_init__(self) -> None:
        if self.embedding < 1:
            raise ValueError(f"embedding must be >= 1, got {self.embedding}")
        if self.recent < 0:
            raise ValueError(f"recent must be >= 0, got {self.recent}")


def build(config: FmConfig, context: rd.BuildContext) -> rd.Student:
    """The student :class:`recdistill_fm.student.FmStudent`."""
    from recdistill_fm.student import FmStudent

    return FmStudent(config, context.require_schema(), context.tasks)


@rd.hookimpl
def recdistill_students() -> list[rd.Component]:
    """The student ``fm``."""
    return [
        rd.Component(
            "fm",
            FmConfig,
            build,
            "Factorisation machine over features and the newest events",
            example={"embedding": 4, "recent": 3},
            api_version=1,
        )
    ]
