"""The verb ``teacher save``: a trained teacher of a run as a folder that is enough to score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recdistill_core.cli import JsonOption, emit
from recdistill_core.errors import UsageError
from recdistill_pipeline.commands import RunArgument


def save(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder of the artefact: config.json and safetensors.")],
    seed: Annotated[int | None, typer.Option(help="Seed of the teacher. Default: the run's first.")] = None,
    step: Annotated[
        str, typer.Option(help="Step with the teacher: teacher, teacher-2, or a copy like teacher-fold-0.")
    ] = "teacher",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier artefact in the folder.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a trained teacher in the form of the Hugging Face hub: config.json and safetensors."""
    from recdistill_core.artefact import CARD, note_dataset
    from recdistill_core.interfaces import TrainableTeacher
    from recdistill_pipeline.teacher_of_run import TeacherOfRun

    found = TeacherOfRun.of(run, seed, step)
    plan = found.plan()
    source = found.dataset(plan)
    teacher = found.teacher(plan, source)
    if not isinstance(teacher, TrainableTeacher):
        raise UsageError(
            f"the run trained no {found.own(plan).teacher.name}, so there are no weights to save",
            where=str(run),
            fix="name a run that trained its teacher",
        )
    teacher.save_pretrained(out, overwrite=overwrite)
    if (out / CARD).is_file():  # a plugin's teacher may write a form of its own
        note_dataset(out, source.snapshot_id)
    answer = {
        "folder": str(out),
        "component": found.own(plan).teacher.name,
        "step": found.name,
        "fingerprint": teacher.fingerprint(),
        "files": sorted(path.name for path in out.iterdir()),
    }
    emit(answer, json, lambda console: console.print(f"{found.name} of {run} in {out}", highlight=False))
