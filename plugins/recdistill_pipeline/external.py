"""The teacher step of a teacher that recdistill does not train: it labels the students' rows and the test rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdistill_core.component import BuildContext
from recdistill_core.errors import DataError
from recdistill_core.interfaces import LogitStore, SampleSource, Teacher, TrainableTeacher
from recdistill_pipeline.dataset import Split
from recdistill_pipeline.label import label_rows
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.runconfig import CaptureConfig, TeacherTrainingConfig


def black_box(plan: Plan, source: SampleSource) -> Teacher | None:
    """The configured teacher where it cannot be trained; None for one that recdistill trains."""
    teacher: Teacher = plan.teacher.build(BuildContext(source.schema, plan.config.all_tasks(), source))
    return None if isinstance(teacher, TrainableTeacher) else teacher


def without_effect(plan: Plan) -> list[str]:
    """Settings of the run that differ from their defaults and say nothing about a teacher that is not trained here."""
    found = [
        f"{section}.{entry.name}"
        for section, config, plain in (
            ("teacher_training", plan.config.teacher_training, TeacherTrainingConfig()),
            ("capture", plan.config.capture, CaptureConfig()),
        )
        for entry in fields(config)
        if getattr(config, entry.name) != getattr(plain, entry.name) and entry.name != "min_coverage"
    ]
    found += ["teacher_debiasers"] if plan.teacher_debiasers else []
    found += ["split.train_from"] if plan.config.split.train_from and plan.config.split.student_from else []
    return found


def label_teacher(
    plan: Plan,
    teacher: Teacher,
    source: SampleSource,
    split: Split,
    store: LogitStore,
    seed: int,
    say: Callable[[str], None],
    out: Path,
) -> dict[str, Any]:
    """Leave the teacher's labels in the store; returns the step's facts. A row that has its label is not scored again.

    Raises:
        DataError: if the labels cover too little of the students' rows, or not all test rows that are evaluated.
    """
    rows = np.concatenate([np.arange(*split.student), np.arange(*split.test)])
    tasks = plan.config.all_tasks()

    def progress(done: int, total: int) -> None:
        say(f"{plan.teacher.name} has scored {done:,} of {total:,} rows")

    found = label_rows(
        teacher,
        source,
        store,
        rows,
        tasks,
        facts={"teacher": plan.teacher.plain()},
        history=getattr(teacher, "history", None),
        progress=progress,
    )
    counts = {"rows": found.rows, "known": found.known, "added": found.added, "unscored": found.unscored}
    if found.unscored:
        shown = ", ".join(map(str, found.unscored_examples))
        say(f"{plan.teacher.name} has no score for {found.unscored:,} of {found.rows:,} rows: examples {shown}, ...")
    version = found.version
    _require_coverage(plan, source, split, store, version.version)
    compared = _compared(plan, source, split, store, version.version, say)
    return {
        "kind": "teacher",
        "seed": seed,
        "labels": {
            "version": version.version,
            "mode": version.mode.value,
            "tasks": list(version.tasks),
            "count": version.count,
            "view": version.view,
        },
        "fingerprint": version.version,
        "description": {**_described(teacher), "labelled": counts, "compared": compared},
        "debiasers": {},
    }


def teacher_logits(store: LogitStore, version: str, task: str, example_id: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logits ``[M]`` of ``example_id [M]``. Raises DataError where one has none."""
    signal = store.read(version, example_id)
    absent = ~signal.valid[task].numpy()
    if absent.any():
        raise DataError(
            f"the teacher has no score of task {task!r} for {int(absent.sum()):,} of {absent.size:,} test rows",
            where=f"example {int(example_id[absent][0])}",
            fix="give it scores for all test rows, or bound them with split.test_from and split.test_until",
        )
    return signal.logits[task].double().numpy()


def _require_coverage(plan: Plan, source: SampleSource, split: Split, store: LogitStore, version: str) -> None:
    """Find before any student is trained what would stop the run after it."""
    ids, task = source.column("example_id"), plan.config.task
    seen = ~np.isnan(source.column(f"label_{task}")[split.test[0] : split.test[1]])
    teacher_logits(store, version, task, ids[split.test[0] : split.test[1]][seen])
    share = float(store.read(version, ids[split.student[0] : split.student[1]]).valid[task].float().mean())
    if share < plan.config.capture.min_coverage:
        raise DataError(
            f"the teacher has scores for {share:.1%} of the students' training rows, less than the "
            f"{plan.config.capture.min_coverage:.1%} of capture.min_coverage",
            where=plan.teacher.label,
            fix="give it the missing scores, or lower capture.min_coverage",
        )


def _compared(
    plan: Plan, source: SampleSource, split: Split, store: LogitStore, version: str, say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Labels beside outcomes of the students' rows, by task; a scale that was declared wrongly shows here."""
    signal = store.read(version, source.column("example_id")[split.student[0] : split.student[1]])
    found = {}
    for task in plan.config.all_tasks():
        label = source.column(f"label_{task}")[split.student[0] : split.student[1]]
        both = signal.valid[task].numpy() & ~np.isnan(label)
        if not both.any():
            continue
        logit = signal.logits[task].double().numpy()[both]
        mean, rate = float(np.mean(1.0 / (1.0 + np.exp(-logit)))), float(label[both].mean())
        found[task] = {"mean_probability": mean, "observed_rate": rate}
        say(f"task {task}: the mean probability of the labels is {mean:.4g}, the rate of the outcomes {rate:.4g}")
        if logit.min() >= 0.0 and logit.max() <= 1.0:
            say(f"task {task}: all logits lie in [0, 1]; if they are probabilities, set scale: probability")
    return found


def _described(teacher: Teacher) -> Mapping[str, Any]:
    """The teacher's own facts; ``describe`` is no duty of a black box."""
    describe = getattr(teacher, "describe", None)
    return dict(describe()) if callable(describe) else {}
