"""The jobs and their verbs: import, teacher fit and save, student fit, evaluate, export, run, demo, labels backfill."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from recdistill_core import Command, hookimpl


def _lazy(name: str, module: str = "commands") -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module(f"recdistill_pipeline.{module}"), name)


@hookimpl
def recdistill_commands() -> list[Command]:
    """The verbs of the pipeline; each is imported when it is asked for."""
    return [
        Command("demo", _lazy("demo"), "Run the whole pipeline on simulated data."),
        Command("run", _lazy("run"), "Run the whole pipeline as a configuration says."),
        Command("data", _lazy("data_app"), "Import and check logs.", group=True),
        Command("teacher", _lazy("teacher_app"), "Train teachers; their logits land in the store.", group=True),
        Command("teacher save", _lazy("save", "commands_teacher"), "Write a trained teacher as safetensors."),
        Command("student", _lazy("student_app"), "Train students from the store.", group=True),
        Command("evaluate", _lazy("evaluate"), "Evaluate a run: eta with intervals."),
        Command("export", _lazy("export"), "Export the distilled students of a finished run."),
        Command("labels backfill", _lazy("backfill", "commands_labels"), "Label the rows that have no label."),
        Command("config", _lazy("config_app"), "Look at a configuration before running it.", group=True),
    ]
