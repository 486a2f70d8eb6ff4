"""Generative pre-training of a teacher's sparse part, full-ranking evaluation, and a teacher's train/test gap.

After GPSD (arXiv 2506.03699): a sequence model learns to tell the next event of a user; the teacher then takes over its
embeddings and does not train them. Registers the verbs ``teacher pretrain`` and ``teacher gap``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from recdistill_core import Command, hookimpl


def _lazy(name: str) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module("recdistill_gpsd.commands"), name)


@hookimpl
def recdistill_commands() -> list[Command]:
    """``teacher pretrain`` and ``teacher gap``."""
    return [
        Command(
            "teacher pretrain", _lazy("pretrain"), "Learn to tell the next event; a teacher takes over the tables."
        ),
        Command("teacher gap", _lazy("gap"), "A teacher on its training rows and on its test rows."),
    ]
