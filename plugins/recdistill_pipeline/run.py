"""A run: import, teacher, students, evaluation; every step is done once and survives a restart."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from recdistill_core.config import make
from recdistill_core.errors import DataError, UsageError
from recdistill_core.interfaces import CaptureMode, LabelVersion, LogitStore, SampleSource, Teacher
from recdistill_core.registry import Registry
from recdistill_core.wiring import check
from recdistill_pipeline.dataset import Progress, Split, import_dataset, make_split, require_both_classes
from recdistill_pipeline.embeddings import require_embeddings, require_models
from recdistill_pipeline.evaluate import measure, predict
from recdistill_pipeline.export import by_student, export_students
from recdistill_pipeline.external import black_box, label_teacher, read_published, require_trained, without_effect
from recdistill_pipeline.fit import fit_fold, fit_student, fit_teacher
from recdistill_pipeline.plan import Plan, teacher_seed
from recdistill_pipeline.plots import draw_all
from recdistill_pipeline.pretrained import Pretrained, require_folder, require_pretrained
from recdistill_pipeline.privileged import Told, noting, require_privileged, what_they_tell
from recdistill_pipeline.record import about, write_record
from recdistill_pipeline.rundir import RunDirectory, read_json
from recdistill_pipeline.shared import SharedFolder, dataset_home, raw_settings, store_spec, teacher_settings
from recdistill_pipeline.student_labels import require_others
from recdistill_pipeline.student_view import require_students


class Run:
    """One run directory and the jobs that fill it.

    Args:
        plan: the resolved configuration. out: the run directory. registry: for the store and the source.
        say: told what happens, a line at a time. progress: told how far the import is.

    Raises:
        UsageError: if a launcher has started it in several processes, each of which would write the directory.
    """

    def __init__(
        self,
        plan: Plan,
        out: Path,
        registry: Registry,
        say: Callable[[str], None] = lambda line: None,
        progress: Progress | None = None,
    ) -> None:
        _require_one_process()
        self.plan, self.registry, self.say, self.progress = plan, registry, say, progress
        self.directory = RunDirectory(out, plan.resolved(), plan.third_party())
        self.shared = SharedFolder(Path(plan.config.shared), say) if plan.config.shared else None
        self.store: LogitStore = make(registry, "store", store_spec(plan, out))
        if plan.config.threads:
            torch.set_num_threads(plan.config.threads)

    def dataset(self) -> tuple[SampleSource, Split]:
        """The dataset, imported where need be, with its split; everything is wired up and checked."""
        path = dataset_home(self.plan, self.directory.path)
        with self._alone(f"dataset-{path.name}"):
            if self.plan.importer is not None and not (path / "manifest.json").exists():
                self.say(f"importing {self.plan.importer.name} into {path}")
                import_dataset(self.plan.importer, path, self.plan.config.dataset.memory_limit, self.progress)
            source: SampleSource = make(self.registry, "source", {**self.plan.config.dataset.source, "path": str(path)})
            self.directory.same_dataset(source.snapshot_id)
        for task in self.plan.config.all_tasks():
            source.schema.require_task(task)
        check(self.plan.components(), source.schema, dataset=str(path), also={"teacher"})
        require_privileged(self.plan, source.schema)
        split = make_split(source, self.plan.config.split)
        require_embeddings(self.plan, source.schema, split)
        require_both_classes(source, split.test, self.plan.config.task)
        return source, split

    def teachers(self, seeds: Sequence[int] | None = None) -> None:
        """Train a teacher per seed, or ask one that is not trained here; their labels land in the store.

        ``seeds`` are those of the configuration, unless it names some of them.
        """
        seeds = self.plan.config.seeds if seeds is None else seeds
        teachers = self.plan.of_teachers()
        todo = [seed for seed in seeds if not all(self.directory.done(f"seed-{seed}/{name}") for name in teachers)]
        if todo and self.plan.config.labels.own:
            require_folder(self.plan)
        source, split = self.dataset()
        told = what_they_tell(self.plan, source, split.teacher, self.say) if todo else {}
        if not self.plan.config.labels.own:
            self._read(source, split, todo, told)
            return
        if todo:
            require_others(self.plan, self.store, source)
        teacher = black_box(self.plan, source) if todo else None
        if todo:
            require_trained(self.plan, source, teacher)
            require_models(self.plan, source, teacher)
            require_students(self.plan, source, split.student)
        if teacher is not None:
            with self._alone("asking"):  # what one run has asked for, the next one finds in the store
                self._ask(teacher, source, split, todo, told)
            return
        if todo:
            taken = require_pretrained(self.plan, source, split, self.directory.steps())
            if taken:
                self.say(taken)
        for seed in seeds:
            for name in teachers:
                self._train(name, source, split, seed, told)

    def _train(self, teacher: str, source: SampleSource, split: Split, seed: int, told: Told) -> None:
        """Train one of the run's teachers, in the step of this name."""
        plan, name, own = self.plan.of_teachers()[teacher], f"seed-{seed}/{teacher}", teacher_seed(teacher, seed)
        line = f"{teacher} {plan.teacher.name}, seed {seed}: {split.teacher[1] - split.teacher[0]:,} rows"
        folds = [] if self.directory.done(name) else self._folds(teacher, source, split, seed)
        work = partial(fit_teacher, plan, source, split, self.store, own, folds=folds)
        self._step(name, line, noting(told, work), partial(self._settings, source, seed, teacher=teacher))

    def _folds(self, teacher: str, source: SampleSource, split: Split, seed: int) -> list[LabelVersion]:
        """Label out of fold, a step per copy of the teacher, where the configuration asks for it."""
        plan, capture = self.plan.of_teachers()[teacher], self.plan.config.capture
        if capture.mode != CaptureMode.OUT_OF_FOLD:
            return []
        made = []
        for number in range(capture.folds):
            name = f"seed-{seed}/{teacher}-fold-{number}"
            told = f"{teacher} {plan.teacher.name}, seed {seed}, fold {number + 1} of {capture.folds}"
            work = partial(fit_fold, plan, source, split, self.store, teacher_seed(teacher, seed), number)
            settings = partial(self._settings, source, seed, fold=number, teacher=teacher)
            made.append(self._step(name, told, work, settings)["labels"]["version"])
        known = {entry.version: entry for entry in self.store.versions()}
        lost = [(number, version) for number, version in enumerate(made) if version not in known]
        if lost:
            raise DataError(
                f"the label store has no version {lost[0][1]!r}, which fold {lost[0][0] + 1} of seed {seed} has made",
                where=f"{len(lost)} of {capture.folds} folds; the store has {', '.join(known) or 'none'}",
                fix=f"bring the store back, or delete {self.directory.path}/seed-{seed}/{teacher}-fold-{lost[0][0]}",
            )
        return [known[version] for version in made]

    def _read(self, source: SampleSource, split: Split, seeds: Sequence[int], told: Told) -> None:
        """Take the labels that others have published; no teacher is trained."""
        idle = without_effect(self.plan)
        if idle:
            self.say(f"labels are read, no teacher is trained; without effect: {', '.join(idle)}")
        for seed in seeds:
            work = partial(read_published, self.plan, source, split, self.store, seed, self.say)
            self.directory.step(f"seed-{seed}/teacher", noting(told, partial(work, run=self.directory.path)))

    def _ask(self, teacher: Teacher, source: SampleSource, split: Split, seeds: Sequence[int], told: Told) -> None:
        """Label with a teacher that is the same for every seed; the rows are scored once."""
        idle = without_effect(self.plan)
        if idle:
            self.say(f"teacher {self.plan.teacher.name} is not trained here; without effect: {', '.join(idle)}")
        self.say(f"asking teacher {self.plan.teacher.name} for its scores")
        for seed in seeds:
            work = partial(label_teacher, self.plan, teacher, source, split, self.store, seed, self.say)
            self.directory.step(f"seed-{seed}/teacher", noting(told, partial(work, run=self.directory.path)))

    def students(self) -> None:
        """Train every student raw and distilled, per seed."""
        source, split = self.dataset()
        for seed in self.plan.config.seeds:
            facts = self.teacher_facts(seed)
            for label in self.plan.students:
                for kind, teacher in (("raw", None), ("distilled", facts)):
                    self._student(source, split, seed, label, kind, teacher)

    def teacher_facts(self, seed: int) -> dict[str, Any]:
        """Facts of the seed's teacher step, whose ``labels`` are those of all teachers of the run.

        Raises:
            UsageError: if one of them is not trained yet.
        """
        steps = [f"seed-{seed}/{name}" for name in self.plan.of_teachers()]
        if not all(map(self.directory.done, steps)):
            raise UsageError(
                f"seed {seed} has no teacher yet", where=str(self.directory.path), fix="run 'teacher fit' first"
            )
        first, *others = (read_json(self.directory.path / step / "manifest.json") for step in steps)
        versions = [version for step in (first, *others) for version in step["labels"]["versions"]]
        return {**first, "labels": {**first["labels"], "versions": versions}}

    def _student(
        self, source: SampleSource, split: Split, seed: int, label: str, kind: str, teacher: Mapping[str, Any] | None
    ) -> None:
        name = f"seed-{seed}/{label}-{kind}"
        told = f"{kind} student {label}, seed {seed}: {split.student[1] - split.student[0]:,} rows"
        fresh = not self.directory.done(name)
        work = partial(fit_student, self.plan, label, source, split, self.store, teacher, seed, run=self.directory.path)
        settings = None if teacher else partial(self._settings, source, seed, label)
        labels = self._step(name, told, work, settings)["labels"]
        if fresh and labels and min(labels["coverage"].values()) < 1.0:
            shares = ", ".join(f"{share:.1%} of its rows (task {task})" for task, share in labels["coverage"].items())
            self.say(f"{label}, seed {seed}, had labels for {shares}, and outcomes alone elsewhere")

    def raw_student(self, label: str, seed: int) -> None:
        """Train one raw student, which needs no teacher."""
        source, split = self.dataset()
        self._student(source, split, seed, label, "raw", None)

    def _step(
        self,
        name: str,
        told: str,
        work: Callable[[Path], Mapping[str, Any]],
        settings: Callable[[], Mapping[str, Any]] | None,
    ) -> dict[str, Any]:
        """Do a step, or take it from the shared folder; ``told`` is said where there is something to do.

        ``settings`` gives all that the step depends on; None: it is not shared.
        """

        def do(out: Path) -> Mapping[str, Any]:
            self.say(told)
            return work(out)

        if self.shared is None or settings is None:
            return self.directory.step(name, do)
        return self.shared.step(self.directory, name, settings(), do)

    def _settings(
        self, source: SampleSource, seed: int, label: str = "", fold: int | None = None, teacher: str = "teacher"
    ) -> dict[str, Any]:
        """All that the raw student ``label`` depends on, or without one the teacher or a copy of it."""
        settings = raw_settings(self.plan, label) if label else teacher_settings(self.plan)
        settings |= {} if teacher == "teacher" else {"which": teacher}
        start = self.plan.config.pretrained.path if not label else ""
        weights = Pretrained.open(Path(start)).weights if start else ""
        return {**settings, "seed": seed, "snapshot": source.snapshot_id, "start": weights, "fold": fold}

    def _alone(self, what: str) -> AbstractContextManager[None]:
        """No other run with the same shared folder is at this while we are."""
        return nullcontext() if self.shared is None else self.shared.lock(what)

    def evaluate(self) -> dict[str, Any]:
        """Score, measure, export and report; writes exports, metrics.json, manifest.json, summary.md and plots."""
        source, split = self.dataset()
        kinds = [f"{label}-{kind}" for label in self.plan.students for kind in ("raw", "distilled")]
        steps = [
            f"seed-{seed}/{name}" for seed in self.plan.config.seeds for name in (*self.plan.of_teachers(), *kinds)
        ]
        missing = [step for step in steps if not self.directory.done(step)]
        if missing:
            raise UsageError(
                f"{len(missing)} of {len(steps)} models are not trained yet, the first one is {missing[0]}",
                where=str(self.directory.path),
                fix="run 'teacher fit' and 'student fit' first, or 'run'",
            )
        found = predict(self.plan, self.directory, source, split, self.store, self.say)
        results = {**about(self, split, found), **measure(self.plan, found, self.say)}
        exports = export_students(self.plan, self.directory, source, split, self.say)
        results["exports"] = by_student(exports)
        draw_all(results, found, self.directory.path / "plots")
        write_record(self, source, results, exports)
        return results

    def export(self) -> dict[str, Any]:
        """Export the distilled students of a finished run; the manifest of each export, by its folder."""
        home = self.directory.path / "metrics.json"
        if not home.exists():
            raise UsageError(
                "the run is not evaluated yet", where=str(home.parent), fix="run 'evaluate' first, or 'run'"
            )
        source, split = self.dataset()
        exports = export_students(self.plan, self.directory, source, split, self.say)
        write_record(self, source, {**read_json(home), "exports": by_student(exports)}, exports)
        return exports

    def all(self) -> dict[str, Any]:
        """The whole run."""
        self.teachers()
        self.students()
        return self.evaluate()


def _require_one_process() -> None:
    """Refuse to be one of several processes that a launcher such as torchrun has started."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count not in ("", "0", "1"):
        raise UsageError(
            f"this is one of {count} processes, and a run is one process: each would write the same directory",
            where="WORLD_SIZE, as torchrun sets it",
            fix="start it without a launcher; train in several processes with a script of your own, as "
            "docs/sharded-training.md shows, and let a run read the labels that it writes (labels: {versions: [...]})",
        )
