"""HSTU teacher: a long-sequence transducer that encodes a history once and scores many candidates against it.

This module only registers the component; torch and xformers load when a teacher is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import recdistill_core as rd
from recdistill_hstu.config import HSTUConfig

if TYPE_CHECKING:
    from recdistill_hstu.teacher import HSTUTeacher

__all__ = ["HSTUConfig", "recdistill_teachers"]


def build(config: HSTUConfig, context: rd.BuildContext) -> HSTUTeacher:
    """The teacher of ``config`` for the dataset and tasks of ``context``; see :class:`HSTUTeacher` for the errors."""
    from recdistill_hstu.teacher import HSTUTeacher

    schema = context.require_schema()
    return HSTUTeacher(config, schema, context.tasks or schema.tasks)


@rd.hookimpl
def recdistill_teachers() -> list[rd.Component]:
    """The ``hstu`` teacher."""
    return [
        rd.Component(
            "hstu",
            HSTUConfig,
            build,
            "HSTU sequence transducer over long histories (SiLU or softmax attention)",
            example={
                "width": 16,
                "heads": 2,
                "max_length": 64,
                "history_stride": 16,
                "context_width": 4,
                "hidden": (16,),
            },
            needs=frozenset({"history"}),
            api_version=1,
        )
    ]
