"""The verbs of a label store: ``recdistill labels list``, ``verify``, ``inspect``, ``revoke`` and so on.

This module registers them; what they need is imported when they are asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from recdistill_core import Command, hookimpl

#: verb: (module, function, summary)
VERBS = {
    "list": (
        "look",
        "list_versions",
        "The teacher versions of a label store: how many labels, of what, revoked or not.",
    ),
    "log": ("look", "log", "The commits of a label store, newest first."),
    "inspect": ("query", "inspect", "Look into the labels: a summary, or any SQL query."),
    "verify": ("check", "verify", "Read all of a label store and say what is wrong where."),
    "gaps": ("coverage", "gaps", "Where a dataset has no labels."),
    "revoke": ("rollback", "revoke", "Make labels of a version invisible."),
    "restore": ("rollback", "restore", "Make the revoked labels of a version visible again."),
    "compact": ("upkeep", "compact", "Fewer, fuller segments."),
    "gc": ("upkeep", "gc", "Remove the files that nobody needs."),
    "pin": ("pins", "pin", "Keep a snapshot, whatever is compacted and collected later."),
    "unpin": ("pins", "unpin", "Remove a pin."),
    "pins": ("pins", "pins", "The pinned snapshots of a label store."),
}


def _lazy(module: str, name: str) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module(f"recdistill_labels.{module}"), name)


def _group() -> Any:
    import typer

    return typer.Typer(no_args_is_help=True)


@hookimpl
def recdistill_commands() -> list[Command]:
    """The group ``labels``, to which other plugins add verbs too, and the verbs of this plugin."""
    verbs = [Command(f"labels {verb}", _lazy(*place), summary) for verb, (*place, summary) in VERBS.items()]
    return [Command("labels", _group, "Look into and look after a label store.", group=True), *verbs]
