"""Embedding distillation in a run: what the teacher step keeps of its embeddings, and what students learn from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recdistill_core.errors import ConfigError, DataError, Problem, UsageError, suggest
from recdistill_core.interfaces import SampleSource, Teacher
from recdistill_core.schema import ITEM, Schema
from recdistill_lightning.embedding_snapshot import EmbeddingSnapshot, teacher_table
from recdistill_lightning.embeddings import EmbeddingDistillation, IdEmbeddings, embedding_width
from recdistill_lightning.modules import StudentModule
from recdistill_pipeline.dataset import Split
from recdistill_pipeline.models import build_student, build_teacher
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.rundir import checked_file
from recdistill_pipeline.student_view import student_view

FILE = "embeddings.safetensors"
#: Names of parameters that no student needs once it is trained begin so.
PREFIX = "embeddings."


def require_embeddings(plan: Plan, schema: Schema, split: Split) -> None:
    """Raise ConfigError for kinds that the dataset lacks, or embeddings that would not be trained by then."""
    config = plan.config.embeddings
    if not config.weight:
        return
    known = [ITEM, *(feature.name for feature in schema.categorical)]
    problems = [
        Problem(
            f"embeddings.of[{at}]", f"the dataset has no ids {kind!r}{suggest(kind, known)}; use {', '.join(known)}"
        )
        for at, kind in enumerate(config.of)
        if kind not in known
    ]
    problems += [
        Problem(f"embeddings.of[{at}]", f"{kind!r} is privileged: students have no embedding of it")
        for at, kind in enumerate(config.of)
        if kind in plan.config.privileged
    ]
    if config.at == "student_start" and split.student[0] <= split.teacher[0]:
        problems.append(
            Problem(
                "embeddings.at",
                "the students start with the teacher's first row, when its embeddings are as they were drawn, and "
                "later ones have seen the labels of the students' rows; set split.student_from to a later time, or at: "
                "end, which marks every result as learnt from embeddings of the end of training",
            )
        )
    if problems:
        raise ConfigError(problems)


def require_models(plan: Plan, source: SampleSource, black_box: Teacher | None) -> None:
    """Find before anything is trained a teacher or a student without embeddings of the kinds asked for.

    Args:
        plan: the run's. source: the dataset. black_box: the teacher, where it is not trained here.

    Raises:
        ConfigError: for these. UsageError: for a teacher that is not trained here.
    """
    config = plan.config.embeddings
    if not config.weight:
        return
    if black_box is not None:
        raise UsageError(
            f"teacher {plan.teacher.name!r} is not trained here, and its embeddings are not known",
            where="embeddings.weight",
            fix="set embeddings.weight to 0, or use a teacher that the run trains",
        )
    problems = []
    seed, view = plan.config.seeds[0], student_view(plan, source, None)
    teacher = build_teacher(plan, source.schema, seed).teacher
    for at, kind in enumerate(config.of):
        try:
            teacher_table(teacher, kind, 1)
        except DataError as error:
            problems.append(Problem(f"embeddings.of[{at}]", f"teacher {plan.teacher.name}: {error.what}"))
    for label in plan.students:
        student = build_student(plan, label, view.schema, seed, distilled=False).student
        for at, kind in enumerate(config.of):
            try:
                embedding_width(student, kind)
            except DataError as error:
                problems.append(Problem(f"embeddings.of[{at}]", f"student {label}: {error.what}; {error.fix}"))
    if problems:
        raise ConfigError(problems)


def snapshot_of(plan: Plan, source: SampleSource, split: Split) -> EmbeddingSnapshot | None:
    """The callback that keeps the teacher's embeddings, or None where nobody learns from them."""
    config = plan.config.embeddings
    if not config.weight:
        return None
    first = int(source.column("event_time")[split.student[0]])
    return EmbeddingSnapshot(source, config.of, before=first if config.at == "student_start" else None)


def keep(snapshot: EmbeddingSnapshot | None, out: Path) -> dict[str, Any]:
    """Write the embeddings into a teacher step's folder; returns the step's facts about them."""
    if snapshot is None or snapshot.taken is None:
        return {}
    snapshot.taken.save(out / FILE)
    facts = {
        "at": "end" if snapshot.before is None else "student_start",
        "before": snapshot.before,
        "updates": snapshot.updates,
        "trained": {kind: int(seen.sum()) for kind, seen in snapshot.taken.seen.items()},
        "shapes": {kind: list(table.shape) for kind, table in snapshot.taken.tables.items()},
    }
    return {"embeddings": facts}


def learn(
    plan: Plan, module: StudentModule, source: SampleSource, steps: int, seed: int, teacher: Path | None
) -> Mapping[str, Any]:
    """Give a distilled student the embeddings of its teacher to learn from; returns the step's facts about it.

    Args:
        plan: the run's. module: the student's. source: the dataset as it reads it. steps: training batches.
        seed: the student's. teacher: folder of its finished teacher step.

    Raises:
        IntegrityError: where the teacher's embeddings are absent or were changed.
    """
    config = plan.config.embeddings
    if not config.weight:
        return {}
    if teacher is None:
        raise UsageError("a student learns from embeddings in a run only", where="fit_student", fix="name the run")
    module.embeddings = EmbeddingDistillation(
        module.student,
        IdEmbeddings.load(checked_file(teacher, FILE)),
        source.schema,
        steps=steps,
        weight=config.weight,
        experts=config.experts,
        temperature=config.temperature,
        temperature_end=config.temperature_end,
        seed=seed,
    )
    parameters = sum(part.numel() for part in module.embeddings.parameters())
    return {"embeddings": {"at": config.at, "of": list(config.of), "parameters_in_training": parameters}}
