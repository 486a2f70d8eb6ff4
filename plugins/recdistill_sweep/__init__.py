"""Many runs from one file: strategies x losses x students x datasets, what they have in common done once.

Registers the verb ``sweep``.
"""

from __future__ import annotations

import importlib
from typing import Any

from recdistill_core import Command, hookimpl


def _load() -> Any:
    return importlib.import_module("recdistill_sweep.commands").sweep


@hookimpl
def recdistill_commands() -> list[Command]:
    """``sweep``."""
    return [Command("sweep", _load, "Do many runs from one file, shared parts once.")]
