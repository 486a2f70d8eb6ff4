"""What every verb prints with: results to stdout, as one JSON document or drawn; messages to stderr."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]


def emit(data: Any, as_json: bool, render: Callable[[Console], None]) -> None:
    """Print ``data`` as one JSON document, or whatever ``render`` draws on a console."""
    if as_json:
        sys.stdout.write(jsonlib.dumps(data, indent=2, default=str, allow_nan=False) + "\n")
    else:
        render(Console())


def messages() -> Console:
    """The console for progress and messages: stderr, so that stdout holds results alone."""
    return Console(stderr=True)
