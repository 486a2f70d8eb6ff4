"""Teachers that somebody else trained: their scores come from files, from a service or from a Python function.

Registers the teachers ``scores_file`` and ``http``. :class:`ExternalTeacher` wraps a function in a script; a
configuration cannot name one, since it names no code.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recdistill_core import BuildContext, Component, hookimpl
from recdistill_external.config import HttpConfig, ScoresFileConfig

if TYPE_CHECKING:
    from recdistill_external.function import ExternalTeacher

__all__ = ["ExternalTeacher"]


def __getattr__(name: str) -> Any:
    if name == "ExternalTeacher":
        return importlib.import_module("recdistill_external.function").ExternalTeacher
    raise AttributeError(f"module 'recdistill_external' has no attribute {name!r}")


def _scores_file(config: ScoresFileConfig, context: BuildContext) -> Any:
    from recdistill_external.scores_file import ScoresFileTeacher

    return ScoresFileTeacher(config, context)


def _http(config: HttpConfig, context: BuildContext) -> Any:
    from recdistill_external.http_teacher import HttpTeacher

    return HttpTeacher(config, context)


def _scores_file_example(folder: Path) -> dict[str, Any]:
    from recdistill_external.example import write_scores

    return write_scores(folder)


def _http_example(folder: Path) -> dict[str, Any]:
    from recdistill_external.example import service_url, settings_of

    return settings_of(service_url())


@hookimpl
def recdistill_teachers() -> list[Component]:
    """``scores_file`` and ``http``."""
    return [
        Component(
            "scores_file",
            ScoresFileConfig,
            _scores_file,
            "Scores of somebody else's model, from Parquet or CSV files",
            example=_scores_file_example,
            api_version=1,
        ),
        Component(
            "http",
            HttpConfig,
            _http,
            "Somebody else's model behind an HTTP service",
            example=_http_example,
            api_version=1,
        ),
    ]
