"""``labels select`` and ``labels discriminate``. What needs torch is imported when a verb runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recdistill_core.console import JsonOption, emit, progress_bar
from recdistill_pipeline.commands import settings_of

if TYPE_CHECKING:
    from recdistill_pipeline.run import Run

RunArgument = Annotated[Path, typer.Argument(help="Run directory with trained raw students.", metavar="RUN")]
SettingsArgument = Annotated[
    list[str] | None, typer.Argument(help="Settings, as key=value.", metavar="[KEY=VALUE ...]")
]
SeedOption = Annotated[
    int | None, typer.Option(help="Whose raw student looks at the examples; also seeds the choice. Default: the first.")
]
StudentOption = Annotated[str, typer.Option(help="Label of the student in the run. Default: the first.")]
OutOption = Annotated[Path, typer.Option("--out", help="Parquet file to write; must not exist yet.")]


def select(
    out_of: RunArgument,
    settings: SettingsArgument = None,
    budget: Annotated[str, typer.Option(help="How many examples: a number, or a share such as 25%.")] = "25%",
    sampler: Annotated[str, typer.Option(help="random, uncertainty, k_center or an installed one.")] = "random",
    seed: SeedOption = None,
    student: StudentOption = "",
    rows: Annotated[str, typer.Option(help="Training rows to choose from: students or teacher.")] = "students",
    out: OutOption = Path("chosen.parquet"),
    json: JsonOption = False,
) -> None:
    """Choose the examples that are worth a teacher's label, the most valuable ones first."""
    from recdistill_select.jobs import choose

    with progress_bar() as progress:
        answer = choose(
            _run(out_of),
            budget=budget,
            sampler={"name": sampler, **settings_of(settings)},
            seed=seed,
            student=student,
            rows=rows,
            out=out,
            progress=progress,
        )
    line = f"{answer['chosen']:,} of {answer['examples']:,} examples, chosen by {answer['sampler']['name']}: {out}"
    emit(answer, json, lambda console: console.print(line, highlight=False, soft_wrap=True))


def discriminate(
    out_of: RunArgument,
    settings: SettingsArgument = None,
    task: Annotated[str, typer.Option(help="Whose labels and outcomes to compare. Default: the run's task.")] = "",
    seed: SeedOption = None,
    student: StudentOption = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Write every labelled row with a column 'rejected', not the rejected ones.")
    ] = False,
    out: OutOption = Path("rejected.parquet"),
    json: JsonOption = False,
) -> None:
    """Find labels of the students' training rows that the outcomes of near examples speak against."""
    from recdistill_select.jobs import judge

    with progress_bar() as progress:
        answer = judge(
            _run(out_of),
            settings=settings_of(settings),
            task=task,
            seed=seed,
            student=student,
            everything=everything,
            out=out,
            progress=progress,
        )
    line = f"{answer['rejected']:,} of {answer['labelled']:,} labels rejected: {out}"
    emit(answer, json, lambda console: console.print(line, highlight=False, soft_wrap=True))


def _run(path: Path) -> Run:
    from recdistill_core.config import load_yaml
    from recdistill_core.registry import installed
    from recdistill_pipeline.plan import make_plan
    from recdistill_pipeline.run import Run
    from recdistill_pipeline.rundir import config_of

    return Run(make_plan(load_yaml(config_of(path)), installed()), path, installed())
