"""Tools for plugin authors: ``recdistill plugins new`` makes a plugin of any kind, ``plugins check`` tests one.

This module registers the verbs; what they need is imported when they are asked for.
"""

from __future__ import annotations

from typing import Any

from recdistill_core import Command, hookimpl


def _load_new() -> Any:
    from recdistill_authoring.new import new

    return new


def _load_check() -> Any:
    from recdistill_authoring.check import check

    return check


@hookimpl
def recdistill_commands() -> list[Command]:
    """``plugins new`` and ``plugins check``."""
    return [
        Command("plugins new", _load_new, "Make a plugin package of any kind, ready to install and test."),
        Command("plugins check", _load_check, "Run the conformance kit on an installed component."),
    ]
