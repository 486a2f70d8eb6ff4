"""The jobs and their verbs: import, teacher fit, student fit, evaluate, export, run, demo."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from recdistill_core import Command, hookimpl


def _lazy(name: str) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module("recdistill_pipeline.commands"), name)


@hookimpl
def recdistill_commands() -> list[Command]:
    """The verbs of the pipeline; each is imported when it is asked for."""
    return [
        Command("demo", _lazy("demo"), "Run the whole pipeline on simulated data."),
        Command("run", _lazy("run"), "Run the whole pipeline as a configuration says."),
        Command("data", _lazy("data_app"), "Import and check logs.", group=True),
        Command("teacher", _lazy("teacher_app"), "Train teachers; their logits land in the store.", group=True),
        Command("student", _lazy("student_app"), "Train students from the store.", group=True),
        Command("evaluate", _lazy("evaluate"), "Evaluate a run: eta with intervals."),
        Command("export", _lazy("export"), "Export the distilled students of a finished run."),
        Command("config", _lazy("config_app"), "Look at a configuration before running it.", group=True),
    ]
