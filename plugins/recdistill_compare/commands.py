"""``compare``: reads arguments, compares, prints. What needs torch is imported when the verb runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recdistill_core.cli import JsonOption, emit
from recdistill_core.console import progress_bar


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated run directories.", metavar="RUN [RUN ...]")],
    metric: Annotated[
        list[str] | None, typer.Option(help="One of the first run's metrics; repeatable. Default: all.")
    ] = None,
    against: Annotated[
        str, typer.Option(help="Row, or folder of a run, that the others are held against. Default: the first.")
    ] = "",
    plot: Annotated[Path | None, typer.Option(help="Folder for plots.", metavar="DIR")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Markdown file for the tables.", metavar="FILE.md")] = None,
    resamples: Annotated[int | None, typer.Option(help="Bootstrap resamples. Default: as in the first run.")] = None,
    json: JsonOption = False,
) -> None:
    """Compare the students of finished runs, paired by example, user and seed."""
    from recdistill_compare.job import compare_runs
    from recdistill_compare.report import console_tables, summary
    from recdistill_core.files import write_atomically

    with progress_bar() as progress:
        answer = compare_runs(runs, metrics=metric or (), against=against, resamples=resamples, progress=progress)
    if plot is not None:
        from recdistill_compare.plots import draw_all

        answer["plots"] = [str(path) for path in draw_all(answer, plot)]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, summary(answer))

    def render(console: Console) -> None:
        for table in console_tables(answer):
            console.print(table)
        for line in answer["verdicts"].values():
            console.print(line, highlight=False)
        for path in [*answer.get("plots", []), *([out] if out is not None else [])]:
            console.print(path, highlight=False, soft_wrap=True)

    emit(answer, json, render)
