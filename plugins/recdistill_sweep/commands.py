"""``sweep``: reads arguments, plans every run, does them, prints what came of it. Torch is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from recdistill_core.console import JsonOption, emit, messages
from recdistill_core.errors import UsageError

if TYPE_CHECKING:
    from recdistill_core.engine import Engine
    from recdistill_sweep.planned import Planned
    from recdistill_sweep.state import SweepState


def sweep(
    file: Annotated[Path, typer.Argument(help="YAML file: a run and what is varied in it.", metavar="SWEEP")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="The engine's settings, as key=value.", metavar="[KEY=VALUE ...]")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the sweep; an unfinished one in it goes on.")] = Path(
        "runs/sweep"
    ),
    workers: Annotated[int | None, typer.Option(help="Processes at a time. Default: 1, or the engine's.")] = None,
    engine: Annotated[str, typer.Option(help="What starts the processes: local, ray or a plugin's.")] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list the runs; start nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Do every run of a sweep that is not finished; what runs share is imported and trained once."""
    from recdistill_core.registry import installed
    from recdistill_pipeline.alone import alone
    from recdistill_sweep.planned import open_folders, plan_all
    from recdistill_sweep.state import SweepState
    from recdistill_sweep.sweep import Sweep, left_over
    from recdistill_sweep.sweepfile import read_sweep

    if workers is not None and workers < 1:
        raise UsageError(f"workers must be >= 1, got {workers}", where="--workers", fix="start at least one process")
    base, arms = read_sweep(file)
    out = out.resolve()
    planned = plan_all(base, arms, out, installed())
    if dry_run:
        _dry_run(planned, SweepState(out, planned), out, json)
        return
    made = _engine(engine, settings, workers)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out / "sweep.lock", "this sweep", out):
        open_folders(planned)
        state = SweepState(out, planned)
        try:
            Sweep(planned, out, state, workers or 1, made, _say).all()
        except KeyboardInterrupt:
            _say("interrupted: what is finished stays, and the same command does the rest")
            raise
    failed = left_over(state)
    emit({**state.plain(), "sweep": str(out)}, json, lambda console: _render(console, state, out))
    for name, why in failed.items():
        _say(f"failed: {name}: {why}; see {out / state.runs[name]['log']}")
    if failed:
        raise typer.Exit(1)


def _say(line: str) -> None:
    messages().print(line, markup=False, highlight=False, soft_wrap=True)


def _engine(name: str, settings: list[str] | None, workers: int | None) -> Engine | None:
    """The engine that was asked for; None for processes of this machine."""
    from recdistill_core.config import make
    from recdistill_core.registry import installed
    from recdistill_pipeline.commands import settings_of

    asked = settings_of(settings)
    if name == "local":
        make(installed(), "engine", {"name": name, **asked})  # refuses settings, of which it has none
        return None
    found: Engine = make(
        installed(), "engine", {"name": name, **asked, **({} if workers is None else {"workers": workers})}
    )
    return found


def _dry_run(planned: list[Planned], state: SweepState, out: Path, json: bool) -> None:
    from recdistill_sweep.sweep import shared_parts

    open_runs = [entry for entry in planned if state.runs[entry.name]["status"] == "pending"]
    shared = [{"what": task.title, "runs": len(users)} for task, users in shared_parts(open_runs, out)]
    answer = {**state.plain(), "shared": shared, "sweep": str(out)}

    def render(console: Console) -> None:
        table = Table(_run_column(), "status", "changes", title=f"{len(planned)} runs", title_justify="left")
        for entry in planned:
            changes = ", ".join(f"{key}={value}" for key, value in sorted(entry.arm.overrides.items()))
            table.add_row(entry.name, state.runs[entry.name]["status"], changes)
        console.print(table)
        for part in shared:
            console.print(f"{part['what']}: for {part['runs']} runs", highlight=False, soft_wrap=True)

    emit(answer, json, render)


def _render(console: Console, state: SweepState, out: Path) -> None:
    rows = [
        (name, facts["status"], label, numbers)
        for name, facts in state.runs.items()
        for label, numbers in facts.get("numbers", {"": {}}).items()
    ]
    metrics = list(dict.fromkeys(metric for *_, numbers in rows for metric in numbers))
    table = Table(_run_column(), "status", "student", *(f"eta {metric}" for metric in metrics))
    for name, status, label, numbers in rows:
        table.add_row(name, status, label, *(_eta(numbers.get(metric)) for metric in metrics))
    console.print(table)
    console.print(f"sweep: {out}", highlight=False, soft_wrap=True)


def _run_column() -> Column:
    """Names of folders are long, and a shortened one cannot be copied. A column belongs to one table."""
    return Column("run", overflow="fold")


def _eta(numbers: Any) -> str:
    """``0.42 [0.31, 0.55]``, as far as it is known."""
    if not numbers or numbers["eta"] is None:
        return "-"
    bounds = [numbers["low"], numbers["high"]]
    return f"{numbers['eta']:.2f}" + ("" if None in bounds else f" [{bounds[0]:.2f}, {bounds[1]:.2f}]")
