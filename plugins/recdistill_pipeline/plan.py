"""A run configuration with every component found and its settings checked, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from recdistill_core.config import Resolved, fill, resolve
from recdistill_core.errors import ConfigError, Problem
from recdistill_core.fingerprint import package_digest
from recdistill_core.registry import Registry
from recdistill_pipeline.runconfig import EmbeddingsConfig, PretrainedConfig, RunConfig, StatesConfig

SINGLE = ("teacher", "strategy", "loss", "trainer", "store")


@dataclass(frozen=True)
class Plan:
    """The resolved run.

    Attributes:
        config: the filled configuration. students, exporters: ``{label: ...}``; labels are unique folder names.
        metrics, plain: ``{name: metric}``.
    """

    config: RunConfig
    importer: Resolved | None
    teacher: Resolved
    further_teachers: tuple[Resolved, ...]
    students: Mapping[str, Resolved]
    strategy: Resolved
    loss: Resolved
    teacher_debiasers: tuple[Resolved, ...]
    student_debiasers: tuple[Resolved, ...]
    metrics: Mapping[str, Resolved]
    plain: Mapping[str, Resolved]
    trainer: Resolved
    exporters: Mapping[str, Resolved]

    def components(self) -> tuple[Resolved, ...]:
        """Everything whose needs the dataset must meet."""
        return (
            self.teacher,
            *self.further_teachers,
            *self.students.values(),
            self.strategy,
            self.loss,
            *self.teacher_debiasers,
            *self.student_debiasers,
            *self.exporters.values(),
        )

    def of_teachers(self) -> dict[str, Plan]:
        """``{step: plan with that teacher}``: ``teacher`` is the first one, whose gain eta is of, then ``teacher-2``.

        Hidden states, embeddings and a pre-trained start are the first one's alone.
        """
        config = replace(
            self.config, states=StatesConfig(), embeddings=EmbeddingsConfig(), pretrained=PretrainedConfig()
        )
        others = {
            f"teacher-{number}": replace(self, teacher=entry, config=config)
            for number, entry in enumerate(self.further_teachers, start=2)
        }
        return {"teacher": self, **others}

    def third_party(self) -> dict[str, str]:
        """``{component: distribution, version and digest of its code}`` of what does not ship with recdistill.

        Exporters are left out: no trained model depends on them.
        """
        models = (self.teacher, *self.further_teachers, *self.students.values(), self.strategy, self.loss)
        others = (*self.teacher_debiasers, *self.student_debiasers, *self.metrics.values(), *self.plain.values())
        importer = () if self.importer is None else (self.importer,)
        return {
            entry.label: f"{entry.entry.plugin.distribution} {entry.entry.plugin.version}, "
            f"code {package_digest(entry.entry.plugin.module)}"
            for entry in (*importer, *models, *others, self.trainer)
            if entry.entry.plugin.distribution != "recdistill" and entry.entry.plugin.module
        }

    def resolved(self) -> dict[str, Any]:
        """The configuration with every default written out, as ``config.yaml`` holds it.

        Names are qualified: what is installed later cannot make them ambiguous. ``further_teachers`` is left out where
        there are none, so that runs that were started before there was such a key go on.
        """
        plain = asdict(self.config)
        del plain["further_teachers"]
        further = {"further_teachers": [entry.pinned() for entry in self.further_teachers]}
        return {
            **plain,
            "dataset": {
                **asdict(self.config.dataset),
                "importer": self.importer.pinned() if self.importer else {},
            },
            "teacher": self.teacher.pinned(),
            **(further if self.further_teachers else {}),
            "students": [student.pinned() for student in self.students.values()],
            "strategy": self.strategy.pinned(),
            "loss": self.loss.pinned(),
            "teacher_debiasers": [entry.pinned() for entry in self.teacher_debiasers],
            "student_debiasers": [entry.pinned() for entry in self.student_debiasers],
            "trainer": self.trainer.pinned(),
            "exporters": [exporter.pinned() for exporter in self.exporters.values()],
            "evaluation": {
                **asdict(self.config.evaluation),
                "metrics": [metric.pinned() for metric in self.metrics.values()],
                "plain": [metric.pinned() for metric in self.plain.values()],
            },
        }


def teacher_seed(teacher: str, seed: int) -> int:
    """What the random numbers of a run's teacher begin with: ``seed``, and for ``teacher-2`` 1,000,000 more, and so on.

    Two teachers of equal settings are therefore two models.
    """
    number = int(teacher.removeprefix("teacher-")) if "-" in teacher else 1
    return seed + (number - 1) * 1_000_000


def make_plan(data: Mapping[str, Any], registry: Registry) -> Plan:
    """Check a whole configuration.

    Raises:
        ConfigError: with every fault at once. PluginError: for a component that is not installed.
    """
    problems: list[Problem] = []
    # a bare name stands for a component with its defaults, wherever one is named
    spelled = {key: {"name": spec} if key in SINGLE and isinstance(spec, str) else spec for key, spec in data.items()}
    config = fill(RunConfig, spelled, "", problems)
    if config is None:
        raise ConfigError(problems)

    def one(kind: str, spec: Any, path: str) -> Any:
        return resolve(registry, kind, spec, path, problems)

    def many(kind: str, specs: list[Any], path: str) -> list[Any]:
        return [one(kind, spec, f"{path}[{index}]") for index, spec in enumerate(specs)]

    importer = one("importer", config.dataset.importer, "dataset.importer") if config.dataset.importer else None
    teacher = one("teacher", config.teacher, "teacher")
    further_teachers = many("teacher", config.further_teachers, "further_teachers")
    students = many("student", config.students, "students")
    strategy, loss = one("strategy", config.strategy, "strategy"), one("loss", config.loss, "loss")
    teacher_debiasers = many("debiaser", config.teacher_debiasers, "teacher_debiasers")
    student_debiasers = many("debiaser", config.student_debiasers, "student_debiasers")
    metrics = many("metric", config.evaluation.metrics, "evaluation.metrics")
    plain = many("metric", config.evaluation.plain, "evaluation.plain")
    trainer = one("trainer", config.trainer, "trainer")
    exporters = many("exporter", config.exporters, "exporters")
    if config.capture.mode == "leaky" and not config.capture.allow_leaky:
        problems.append(
            Problem(
                "capture.mode",
                "'leaky' stores logits of a teacher that was trained on the same examples, so labels leak into what is "
                "distilled; set capture.allow_leaky=true to do it all the same, every result is then marked leaky",
            )
        )
    if config.student_training.within == "shuffle" and config.student_training.window_hours > 0:
        listwise = [entry for entry in (*students, strategy, loss, *student_debiasers) if entry is not None]
        problems.extend(
            Problem(
                "student_training.within",
                f"'shuffle' tears requests apart, and {entry.label} needs their rows together; set it to request",
            )
            for entry in listwise
            if "request_groups" in entry.needs()
        )
    for path, found in (("evaluation.metrics", metrics), ("evaluation.plain", plain)):
        names = [entry.name for entry in found if entry is not None]
        twice = sorted({name for name in names if names.count(name) > 1})
        problems.extend(
            Problem(path, f"names metric {name!r} more than once; results are keyed by name") for name in twice
        )
    if problems:
        raise ConfigError(problems)
    return Plan(
        config,
        importer,
        teacher,
        tuple(further_teachers),
        _labelled(students),
        strategy,
        loss,
        tuple(teacher_debiasers),
        tuple(student_debiasers),
        {entry.name: entry for entry in metrics},
        {entry.name: entry for entry in plain},
        trainer,
        _labelled(exporters),
    )


def _labelled(entries: list[Resolved]) -> dict[str, Resolved]:
    """``{"dcn": ..., "dcn-2": ...}``: the name, numbered where it is used again."""
    labelled: dict[str, Resolved] = {}
    for entry in entries:
        owners = {other.entry.plugin.distribution for other in entries if other.name == entry.name}
        name = entry.name if len(owners) == 1 else entry.entry.qualified.replace(":", ".")
        count = sum(1 for other in labelled.values() if other.entry is entry.entry)
        labelled[name if not count else f"{name}-{count + 1}"] = entry
    return labelled
