"""What a teacher takes before anybody pays for it: parameters, FLOPs, memory, time, and the smallest cluster that fits.

Registers the verb ``teacher plan``.
"""

from __future__ import annotations

import importlib
from typing import Any

from recdistill_core import Command, hookimpl


def _load() -> Any:
    return importlib.import_module("recdistill_plan.commands").plan


@hookimpl
def recdistill_commands() -> list[Command]:
    """``teacher plan``."""
    return [Command("teacher plan", _load, "Say what a teacher takes: parameters, FLOPs, memory, GPUs, days.")]
