"""A teacher that a run has left: where it is, its dataset and store, and what it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdistill_core.component import BuildContext
from recdistill_core.config import load_yaml, make
from recdistill_core.errors import UsageError
from recdistill_core.interfaces import LogitStore, SampleSource, Teacher, TrainableTeacher
from recdistill_core.registry import installed
from recdistill_lightning.trained import TrainedExamples
from recdistill_pipeline.fit import label_notes
from recdistill_pipeline.models import build_teacher
from recdistill_pipeline.plan import Plan, make_plan, teacher_seed
from recdistill_pipeline.rundir import (
    RunDirectory,
    checked_file,
    config_of,
    read_json,
    require_dataset,
    trained_here,
)
from recdistill_pipeline.shared import dataset_home, store_spec


@dataclass(frozen=True)
class TeacherOfRun:
    """A teacher as a finished step of a run left it, its dataset and its store; small enough to be sent anywhere.

    Attributes:
        run: the run directory, where every worker finds it. seed: of the step. step: ``teacher``, ``teacher-2`` of a
            run with several, or a copy such as ``teacher-fold-0``.
    """

    run: Path
    seed: int
    step: str = "teacher"

    @property
    def name(self) -> str:
        """The step's place in the run directory."""
        return f"seed-{self.seed}/{self.step}"

    @classmethod
    def of(cls, run: Path, seed: int | None = None, step: str = "teacher") -> TeacherOfRun:
        """The teacher of a run, by default of its first seed.

        Raises:
            UsageError: if this is no run, or it has no such finished step.
        """
        config_of(run)
        run = run.absolute()  # a worker may have another working directory
        found = cls(run, seed or 0, step)
        if seed is None:
            found = cls(run, found.plan().config.seeds[0], step)
        there = (run / found.name / "manifest.json").exists()
        if not there or _teacher(step) not in found.plan().of_teachers():
            steps = sorted(path.parent for path in run.glob("seed-*/teacher*/manifest.json"))
            raise UsageError(
                f"the run has no finished teacher {found.name}",
                where=f"{run}; it has {', '.join(str(path.relative_to(run)) for path in steps) or 'none'}",
                fix="name the seed and the step of a teacher that is there, or run 'teacher fit' first",
            )
        return found

    def plan(self) -> Plan:
        """The run's configuration."""
        return make_plan(load_yaml(config_of(self.run)), installed())

    def dataset(self, plan: Plan) -> SampleSource:
        """The run's dataset."""
        path = dataset_home(plan, self.run)
        source: SampleSource = make(installed(), "source", {**plan.config.dataset.source, "path": str(path)})
        require_dataset(self.run, source.snapshot_id)
        return source

    def store(self, plan: Plan) -> LogitStore:
        """The run's store."""
        store: LogitStore = make(installed(), "store", store_spec(plan, self.run))
        return store

    def teacher(self, plan: Plan, source: SampleSource) -> Teacher:
        """The teacher with the weights that it had at the end of the step, or one that is not trained here."""
        own = self.own(plan)
        built: Teacher = own.teacher.build(BuildContext(source.schema, plan.config.all_tasks(), source))
        if not isinstance(built, TrainableTeacher):
            return built
        if self._trained_on() is None:
            raise UsageError(
                f"the run trained no {own.teacher.name}: the labels of step {self.name} came from elsewhere",
                where=str(self.run),
                fix="name a run that trained its teacher",
            )
        directory = RunDirectory(self.run, plan.resolved(), plan.third_party())
        weights = directory.checked(self.name, "model.safetensors")
        return build_teacher(own, source.schema, self._own_seed(), weights).teacher.eval()

    def reached(self, source: SampleSource, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """``[R]``: whether the label of a row can have reached the teacher.

        Raises:
            IntegrityError: if the list of what the teacher was trained on is gone or was changed.
        """
        trained = self._trained_on()
        return np.zeros(rows.shape, np.bool_) if trained is None else trained.reached(source, rows)

    def facts(self, plan: Plan, source: SampleSource) -> dict[str, Any]:
        """Notes for the labels' version."""
        own, trained = self.own(plan), self._trained_on()
        if trained is None:
            return {"dataset": source.snapshot_id, "teacher": own.teacher.plain()}
        notes = {"dataset": source.snapshot_id, "seed": self._own_seed(), "trained_until": trained.until(source)}
        step = read_json(self.run / self.name / "manifest.json")
        started = {"pretrained": step["pretrained"]} if "pretrained" in step else {}
        return {**notes, **label_notes(own), **started}

    def own(self, plan: Plan) -> Plan:
        """The plan of this teacher, which need not be the run's first."""
        return plan.of_teachers()[_teacher(self.step)]

    def _own_seed(self) -> int:
        return teacher_seed(_teacher(self.step), self.seed)

    def _trained_on(self) -> TrainedExamples | None:
        """What the teacher was trained on; None for one that was not trained here."""
        step = self.run / self.name
        if not trained_here(read_json(step / "manifest.json")):
            return None
        return TrainedExamples.load(checked_file(step, "trained_on.npy"))


def _teacher(step: str) -> str:
    """The step of the teacher itself, for one of its copies as well."""
    return step.partition("-fold-")[0]
