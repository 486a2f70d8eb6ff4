"""``labels select`` and ``labels discriminate``. What needs torch is imported when a verb runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from recdistill_core.console import JsonOption, emit, messages
from recdistill_core.errors import UsageError

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

    with _bar() as progress:
        answer = choose(
            _run(out_of),
            budget=budget,
            sampler={"name": sampler, **_settings(settings)},
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

    with _bar() as progress:
        answer = judge(
            _run(out_of),
            settings=_settings(settings),
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

    if not (path / "config.yaml").exists():
        raise UsageError("this is no run directory", where=str(path), fix="name a directory with config.yaml in it")
    return Run(make_plan(load_yaml(path / "config.yaml"), installed()), path, installed())


def _settings(settings: list[str] | None) -> dict[str, Any]:
    """``["key=value", ...]`` as plain values."""
    from omegaconf import OmegaConf

    for setting in settings or []:
        if "=" not in setting:
            raise UsageError(f"setting {setting!r} is not KEY=VALUE", fix="write for example partition_rows=8192")
    plain = OmegaConf.to_container(OmegaConf.from_dotlist(settings or []))
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """A function of (what is done, rows done, rows in all) that draws one bar per work."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=messages(), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show
