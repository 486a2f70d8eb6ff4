"""recdistill: move the quality of a huge recommendation model into a model small enough to serve.

The core holds contracts, the registry, configuration and the command shell. Names below load on first use, so that
``import recdistill_core`` in a plugin's hook module costs milliseconds and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from recdistill_core.component import RECDISTILL_API, BuildContext, Command, Component
from recdistill_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from recdistill_core.batch import Batch, History, Scores, TeacherSignal
    from recdistill_core.config import make
    from recdistill_core.features import FeatureEmbedding, RecentHistory
    from recdistill_core.interfaces import (
        Debiaser,
        DistillationLoss,
        HeadStrategy,
        HistoryWindow,
        Student,
        Teacher,
        TrainableTeacher,
    )
    from recdistill_core.objective import Objective
    from recdistill_core.registry import installed
    from recdistill_core.schema import Schema

__version__ = "0.1.0"

_HOMES = {
    "Batch": "batch",
    "History": "batch",
    "Scores": "batch",
    "TeacherSignal": "batch",
    "FeatureEmbedding": "features",
    "RecentHistory": "features",
    "Debiaser": "interfaces",
    "DistillationLoss": "interfaces",
    "HeadStrategy": "interfaces",
    "HistoryWindow": "interfaces",
    "Student": "interfaces",
    "Teacher": "interfaces",
    "TrainableTeacher": "interfaces",
    "Objective": "objective",
    "Schema": "schema",
    "installed": "registry",
    "make": "config",
}

__all__ = [
    "RECDISTILL_API",
    "Batch",
    "BuildContext",
    "Command",
    "Component",
    "Debiaser",
    "DistillationLoss",
    "FeatureEmbedding",
    "HeadStrategy",
    "History",
    "HistoryWindow",
    "Objective",
    "RecentHistory",
    "Schema",
    "Scores",
    "Student",
    "Teacher",
    "TeacherSignal",
    "TrainableTeacher",
    "__version__",
    "hookimpl",
    "installed",
    "make",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"recdistill_core.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'recdistill_core' has no attribute {name!r}")
