"""Which of several runs did best, and whether that is more than noise: paired differences with intervals, and plots.

Registers the verb ``compare``.
"""

from __future__ import annotations

import importlib
from typing import Any

from recdistill_core import Command, hookimpl


def _load() -> Any:
    return importlib.import_module("recdistill_compare.commands").compare


@hookimpl
def recdistill_commands() -> list[Command]:
    """``compare``."""
    return [Command("compare", _load, "Compare finished runs: differences with intervals.")]
