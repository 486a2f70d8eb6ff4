"""A transformers decoder as a teacher: any of the tested architectures encodes the history and the candidates.

This module only registers the component; torch and transformers load when a teacher is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import recdistill_core as rd
from recdistill_hf.config import HFConfig

if TYPE_CHECKING:
    from recdistill_hf.teacher import HFTeacher

__all__ = ["HFConfig", "recdistill_teachers"]


def build(config: HFConfig, context: rd.BuildContext) -> HFTeacher:
    """The teacher of ``config`` for the dataset and tasks of ``context``; see :class:`HFTeacher` for the errors."""
    from recdistill_hf.teacher import HFTeacher

    schema = context.require_schema()
    return HFTeacher(config, schema, context.tasks or schema.tasks)


@rd.hookimpl
def recdistill_teachers() -> list[rd.Component]:
    """The ``hf`` teacher."""
    return [
        rd.Component(
            "hf",
            HFConfig,
            build,
            "A transformers decoder (llama, qwen3, gpt2, ...) over long histories",
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
