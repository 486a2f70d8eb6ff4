"""Teacher steps without training: an external teacher labels rows, or versions that others published are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdistill_core.batch import TeacherSignal
from recdistill_core.component import BuildContext
from recdistill_core.errors import DataError, UsageError
from recdistill_core.interfaces import LogitStore, SampleSource, Teacher, TrainableTeacher
from recdistill_core.label_choice import choose_labels
from recdistill_core.labels import PinnedStore
from recdistill_pipeline.dataset import Split
from recdistill_pipeline.label import label_rows
from recdistill_pipeline.plan import Plan
from recdistill_pipeline.runconfig import CaptureConfig, TeacherTrainingConfig
from recdistill_pipeline.student_labels import (
    allowed_labels,
    as_it_was,
    choice_of,
    chosen_rows,
    label_facts,
    pin_for,
    published_choice,
    published_store,
)


def black_box(plan: Plan, source: SampleSource) -> Teacher | None:
    """The configured teacher where it cannot be trained; None for one that recdistill trains.

    Raises:
        UsageError: if it is to score candidates or to hand out hidden states, which is done in training.
    """
    teacher: Teacher = plan.teacher.build(BuildContext(source.schema, plan.config.all_tasks(), source))
    if isinstance(teacher, TrainableTeacher):
        return None
    if plan.config.states.width:
        raise UsageError(
            f"teacher {plan.teacher.name!r} is not trained here, and hidden states are kept in training",
            where="states.width",
            fix="set states.width to 0, or use a teacher that the run trains",
        )
    if plan.config.candidates.per_row:
        raise UsageError(
            f"teacher {plan.teacher.name!r} is not trained here, and candidates are scored in training",
            where="candidates.per_row",
            fix="set candidates.per_row to 0, or use a teacher that the run trains",
        )
    return teacher


def require_trained(plan: Plan, source: SampleSource, teacher: Teacher | None) -> None:
    """Raise UsageError where teachers are to teach together and the run does not train all of them.

    ``teacher`` is what :func:`black_box` has said of the first one.
    """
    others = [(f"further_teachers[{at}]", other) for at, other in enumerate([*plan.of_teachers().values()][1:])]
    found = [("teacher", plan)] if teacher is not None and others else []
    found += [(where, other) for where, other in others if black_box(other, source) is not None]
    if found:
        where, other = found[0]
        raise UsageError(
            f"teacher {other.teacher.name!r} is not trained here, and further_teachers are trained with the first one",
            where=where,
            fix="let a run of its own put its labels into a store, and name their version in labels.versions beside "
            "'own'",
        )


def without_effect(plan: Plan) -> list[str]:
    """Settings of the run that differ from their defaults and say nothing about a teacher that is not trained here."""
    # with versions of others among them, labels may be leaky whatever this teacher is
    for_students = ("min_coverage", *(("allow_leaky",) if plan.config.labels.versions else ()))
    found = [
        f"{section}.{entry.name}"
        for section, config, plain in (
            ("teacher_training", plan.config.teacher_training, TeacherTrainingConfig()),
            ("capture", plan.config.capture, CaptureConfig()),
        )
        for entry in fields(config)
        if getattr(config, entry.name) != getattr(plain, entry.name) and entry.name not in for_students
    ]
    found += ["teacher_debiasers"] if plan.teacher_debiasers else []
    found += ["pretrained"] if plan.config.pretrained.path else []
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
    run: Path | None = None,
) -> dict[str, Any]:
    """Leave the teacher's labels in the store; returns the step's facts. A row that has its label is not scored again.

    Where the configuration chooses examples, the teacher is asked about these and the test rows alone. The commit that
    holds the labels is pinned in the name of ``run``.

    Raises:
        DataError: if the labels cover too little of the students' rows, or not all test rows that are evaluated.
    """
    wanted, keep = np.arange(*split.student), chosen_rows(plan, source)
    rows = np.concatenate([wanted if keep is None else wanted[keep[wanted]], np.arange(*split.test)])
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
    step = _step(plan, source, split, store, seed, say, label_facts([found.version]), run)
    step["description"] = {**_described(teacher), "labelled": counts, **step["description"]}
    return step


def read_published(
    plan: Plan,
    source: SampleSource,
    split: Split,
    store: LogitStore,
    seed: int,
    say: Callable[[str], None],
    out: Path,
    run: Path | None = None,
) -> dict[str, Any]:
    """The step of a run whose students learn from versions that others have put into the store.

    Raises:
        DataError: as :func:`label_teacher`. IntegrityError, LeakError: if a version is not fit for this run.
    """
    facts = published_choice(plan, store, source)
    return _step(plan, source, split, published_store(plan, store), seed, say, facts, run)


def teacher_logits(
    store: LogitStore, labels: Mapping[str, Any], task: str, source: SampleSource, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Logits ``[R]`` of the row positions ``rows [R]`` from a teacher step's ``labels``.

    Raises:
        DataError: where one has none.
    """
    ids = source.column("example_id")[rows]
    signal = choose_labels(store, choice_of(labels), ids, source.column("event_time")[rows]).signal
    absent = ~signal.valid[task].numpy()
    if absent.any():
        raise DataError(
            f"the teacher has no score of task {task!r} for {int(absent.sum()):,} of {absent.size:,} test rows",
            where=f"example {int(ids[absent][0])}",
            fix="give it scores for all test rows (a teacher of a run does it with 'labels backfill'), or bound them "
            "with split.test_from and split.test_until",
        )
    return signal.logits[task].double().numpy()


def observed_rows(source: SampleSource, rows: tuple[int, int], task: str) -> NDArray[np.int64]:
    """``[R]`` positions of the rows in ``[first, last + 1)`` whose label of ``task`` is known."""
    return rows[0] + np.flatnonzero(~np.isnan(source.column(f"label_{task}")[rows[0] : rows[1]]))


def _step(
    plan: Plan,
    source: SampleSource,
    split: Split,
    store: LogitStore,
    seed: int,
    say: Callable[[str], None],
    labels: dict[str, Any],
    run: Path | None,
) -> dict[str, Any]:
    """Facts of a teacher step without training; whatever would stop the run later stops it here."""
    kept: dict[str, Any] = {"store": store.snapshot_id()} if isinstance(store, PinnedStore) else {}
    store = as_it_was(store, kept)
    _require_coverage(plan, source, split, store, labels)
    if run is not None and isinstance(store, PinnedStore):
        kept["pin"] = pin_for(store, kept["store"], run, plan.config.name)
    return {
        "kind": "teacher",
        "seed": seed,
        "labels": {**labels, **kept},
        "fingerprint": labels["version"],
        "description": {"compared": _compared(plan, source, split, store, labels, say)},
        "debiasers": {},
    }


def _student_signal(source: SampleSource, split: Split, store: LogitStore, labels: Mapping[str, Any]) -> TeacherSignal:
    part = slice(*split.student)
    ids, times = source.column("example_id")[part], source.column("event_time")[part]
    return choose_labels(store, choice_of(labels), ids, times).signal


def _require_coverage(
    plan: Plan, source: SampleSource, split: Split, store: LogitStore, labels: Mapping[str, Any]
) -> None:
    """Find before any student is trained what would stop the run after it."""
    task = plan.config.task
    teacher_logits(store, labels, task, source, observed_rows(source, split.test, task))
    theirs = allowed_labels(plan, source, store, labels)
    valid, keep = _student_signal(source, split, store, theirs).valid[task].numpy(), chosen_rows(plan, source)
    share = float(np.mean(valid if keep is None else valid & keep[slice(*split.student)]))
    if share < plan.config.capture.min_coverage:
        raise DataError(
            f"the teacher has scores for {share:.1%} of the students' training rows, less than the "
            f"{plan.config.capture.min_coverage:.1%} of capture.min_coverage",
            where=plan.teacher.label if plan.config.labels.own else "labels.versions",
            fix="give it the missing scores, or lower capture.min_coverage",
        )


def _compared(
    plan: Plan,
    source: SampleSource,
    split: Split,
    store: LogitStore,
    labels: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """Labels beside outcomes of the students' rows, by task; a scale that was declared wrongly shows here."""
    signal = _student_signal(source, split, store, labels)
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
