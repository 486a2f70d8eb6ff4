"""The verbs ``labels ...`` that need the pipeline: a teacher of a run labels what has no label."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recdistill_core.cli import JsonOption, emit
from recdistill_core.console import messages, progress_bar
from recdistill_core.errors import UsageError
from recdistill_pipeline.commands import RunArgument, settings_of


def backfill(
    run: RunArgument,
    settings: Annotated[
        list[str] | None, typer.Argument(help="The engine's settings, as key=value.", metavar="[KEY=VALUE ...]")
    ] = None,
    engine: Annotated[str, typer.Option(help="What does the work: local, ray or a plugin's.")] = "local",
    seed: Annotated[int | None, typer.Option(help="Seed of the teacher. Default: the run's first.")] = None,
    step: Annotated[
        str, typer.Option(help="Step with the teacher: teacher, teacher-2, or a copy like teacher-fold-0.")
    ] = "teacher",
    version: Annotated[
        list[str] | None, typer.Option(help="Rows with a label of this version are left alone. Default: the step's.")
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Parquet file with a column example_id: label these only.")
    ] = None,
    since: Annotated[
        str, typer.Option(help="First row: ISO time (UTC), ms since the epoch, or a share like 80%.")
    ] = "",
    until: Annotated[str, typer.Option(help="First row that is left alone, as for --since.")] = "",
    block_rows: Annotated[int, typer.Option(help="Rows of a block, which is one commit.")] = 100_000,
    allow_leaky: Annotated[
        bool, typer.Option("--allow-leaky", help="Label rows that the teacher was trained on, too; marked leaky.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Label the rows that have no label with a teacher of a run; go on where an earlier call stopped."""
    import numpy as np

    from recdistill_core.config import make
    from recdistill_core.registry import installed
    from recdistill_pipeline.backfill import backfill as fill
    from recdistill_pipeline.dataset import row_of
    from recdistill_pipeline.student_labels import read_example_ids
    from recdistill_pipeline.teacher_of_run import TeacherOfRun

    teacher = TeacherOfRun.of(run, seed, step)
    source = teacher.dataset(teacher.plan())
    rows = np.arange(row_of(source, since, "--since", 0), row_of(source, until, "--until", source.num_rows))
    if examples is not None:
        wanted = read_example_ids(examples, "--examples")
        rows = rows[np.isin(source.column("example_id")[rows], wanted)]
    if not rows.size:
        raise UsageError(
            "no row of the dataset lies between --since and --until, or none of them is among the examples",
            where=str(run),
            fix="widen the bounds",
        )
    try:
        with progress_bar() as tell:
            found = fill(
                teacher,
                make(installed(), "engine", {"name": engine, **settings_of(settings)}),
                versions=version or (),
                rows=rows,
                allow_leaky=allow_leaky,
                block_rows=block_rows,
                progress=partial(tell, "blocks"),
            )
    except KeyboardInterrupt:
        messages().print("interrupted: finished blocks are committed, and the same command does the rest")
        raise

    def render(console: Console) -> None:
        console.print(f"{found.added:,} labels of version {found.version} ({found.mode}) in {found.blocks} blocks")
        if found.reached:
            console.print(f"{found.reached:,} rows left out: their outcomes can have reached this teacher")
        if found.unscored:
            console.print(f"{found.unscored:,} rows left out: the teacher has no score for them")
        if not found.missing:
            console.print("every row has a label")

    emit(asdict(found), json, render)
