"""What every verb prints with: results to stdout, as one JSON document or drawn; messages to stderr."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """Bars on stderr, one for each kind of work, each gone when its work is done; none where stderr is no terminal.

    Yields:
        ``tell(what, done, of)``; ``of`` is None where nobody knows it.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = messages()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, of: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of)
            bar.update(tasks[what], completed=done, total=of, visible=of is None or done < of)

        yield tell
