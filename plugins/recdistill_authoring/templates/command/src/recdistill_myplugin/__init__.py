"""The verb ``my-plugin``. This module registers it; what it needs is imported when it is asked for."""

from __future__ import annotations

from typing import Any

import recdistill_core as rd


def load() -> Any:
    """The function behind the verb; typer reads its annotations."""
    from recdistill_myplugin.command import label_versions

    return label_versions


@rd.hookimpl
def recdistill_commands() -> list[rd.Command]:
    """The verb ``my-plugin``."""
    return [rd.Command("my-plugin", load, "List the teacher versions of a label store.")]
