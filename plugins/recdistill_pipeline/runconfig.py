"""The run configuration: what a YAML file for ``recdistill run`` may say."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from recdistill_core.labels import CaptureMode, LabelPolicy
from recdistill_pipeline.runconfig_channels import OWN as OWN
from recdistill_pipeline.runconfig_channels import CandidatesConfig as CandidatesConfig
from recdistill_pipeline.runconfig_channels import CaptureConfig as CaptureConfig
from recdistill_pipeline.runconfig_channels import EmbeddingsConfig as EmbeddingsConfig
from recdistill_pipeline.runconfig_channels import LabelsConfig as LabelsConfig
from recdistill_pipeline.runconfig_channels import StatesConfig as StatesConfig
from recdistill_pipeline.runconfig_training import PretrainedConfig as PretrainedConfig
from recdistill_pipeline.runconfig_training import RawTrainingConfig as RawTrainingConfig
from recdistill_pipeline.runconfig_training import TeacherTrainingConfig as TeacherTrainingConfig
from recdistill_pipeline.runconfig_training import TrainingConfig as TrainingConfig


@dataclass(frozen=True)
class DatasetConfig:
    """Where the impressions come from.

    Attributes:
        path: an imported dataset's folder; empty: import into the run directory.
        importer: ``{name: kuairand, ...}``, used where ``path`` is empty.
        source: what reads the dataset; it is given ``path``.
        memory_limit: bound on the import's memory, such as ``1GB``.
    """

    path: str = ""
    importer: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=lambda: {"name": "parquet"})
    memory_limit: str = "1GB"

    def __post_init__(self) -> None:
        if bool(self.path) == bool(self.importer):
            raise ValueError("give either path (an imported dataset) or importer ({name: ...}), not both or neither")


@dataclass(frozen=True)
class SplitConfig:
    """Time ranges; each bound is an ISO date or time (UTC), ms since the epoch, or a share of the rows like ``80%``.

    Attributes:
        test_from: rows from here on are the test set; the teacher and the students train on earlier rows only.
        test_until: end of the test set; empty: the end of the log.
        train_from: the teacher's (and by default the students') first row; empty: the start of the log.
        student_from: the students' first row, for students that see less of the log than their teacher.
        stream_from: training rows from here on are the stream phase: read once, in time order, after ``batch_epochs``
            passes over the batch phase before it; empty: no stream phase.
    """

    test_from: str = "80%"
    test_until: str = ""
    train_from: str = ""
    student_from: str = ""
    stream_from: str = ""


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on the test rows.

    Attributes:
        metrics: metrics with eta and intervals. plain: metrics reported without eta.
        resamples: bootstrap resamples of users (and seeds), >= 100. confidence: of the intervals, in (0.5, 1).
        batch_size: rows per scoring batch.
    """

    metrics: list[Any] = field(default_factory=lambda: ["auc", "gauc", "ne"])
    plain: list[Any] = field(default_factory=lambda: ["calibration", "ece"])
    resamples: int = 1000
    confidence: float = 0.95
    batch_size: int = 4096

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ValueError("metrics needs at least one entry")
        if self.resamples < 100:
            raise ValueError(f"resamples must be >= 100, got {self.resamples}")
        if not 0.5 < self.confidence < 1.0:
            raise ValueError(f"confidence must lie in (0.5, 1), got {self.confidence}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")


@dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
        task: the task that is evaluated. tasks: all tasks that are learnt; empty: ``task`` alone.
        further_teachers: trained beside ``teacher``, with the same settings; the students learn from the labels of all.
        students: one or more; the first one's numbers head ``metrics.json``.
        exporters: formats in which every distilled student is written.
        seeds: each seed trains a teacher, and every student raw and distilled.
        raw_training: where the raw students' training differs from ``student_training``.
        privileged: features that the teacher reads and the students do not: they are not known when a student serves.
        candidates: items that were not shown, scored by the teacher as it trains.
        states: hidden states of the teacher that students read of their users' past.
        embeddings: what the students' embeddings learn of the teacher's.
        pretrained: what the teacher takes over from a model that was pre-trained.
        pretrain: settings of ``teacher pretrain``; the run itself does not read them.
        threads: CPU threads; 0 leaves torch's choice.
        shared: folder in which runs find datasets, trained teachers with their labels, and raw students that other runs
            of the same settings have made, and leave theirs; empty: none.
    """

    name: str
    dataset: DatasetConfig
    task: str
    split: SplitConfig = field(default_factory=SplitConfig)
    tasks: list[str] = field(default_factory=list)
    teacher: dict[str, Any] = field(default_factory=lambda: {"name": "hstu"})
    further_teachers: list[Any] = field(default_factory=list)
    students: list[Any] = field(default_factory=lambda: [{"name": "dcn"}, {"name": "mlp"}])
    strategy: dict[str, Any] = field(default_factory=lambda: {"name": "rec_distill"})
    loss: dict[str, Any] = field(default_factory=lambda: {"name": "soft_ce"})
    teacher_debiasers: list[Any] = field(default_factory=list)
    student_debiasers: list[Any] = field(default_factory=list)
    teacher_training: TeacherTrainingConfig = field(default_factory=TeacherTrainingConfig)
    student_training: TrainingConfig = field(default_factory=TrainingConfig)
    raw_training: RawTrainingConfig = field(default_factory=RawTrainingConfig)
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    privileged: list[str] = field(default_factory=list)
    candidates: CandidatesConfig = field(default_factory=CandidatesConfig)
    states: StatesConfig = field(default_factory=StatesConfig)
    embeddings: EmbeddingsConfig = field(default_factory=EmbeddingsConfig)
    pretrained: PretrainedConfig = field(default_factory=PretrainedConfig)
    pretrain: dict[str, Any] = field(default_factory=dict)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    exporters: list[Any] = field(default_factory=list)
    trainer: dict[str, Any] = field(default_factory=lambda: {"name": "lightning"})
    store: dict[str, Any] = field(default_factory=lambda: {"name": "parquet"})
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    threads: int = 0
    shared: str = ""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds needs one or more different numbers >= 0, got {self.seeds}")
        if not self.students:
            raise ValueError("students needs at least one entry")
        try:
            self.training_of_students(distilled=False)
        except ValueError as error:
            raise ValueError(f"raw_training: {error}") from error
        if self.further_teachers and not (self.labels.own and self.labels.policy == LabelPolicy.ALL_OF.value):
            raise ValueError(
                "further_teachers teach together with the run's own: they need labels.policy 'all_of' and, where "
                "labels.versions names any, 'own' among them"
            )
        if self.further_teachers and max(self.seeds) >= 1_000_000:
            raise ValueError(
                f"with further_teachers seeds must be below 1,000,000, which is where theirs begin, got {self.seeds}"
            )
        if self.further_teachers and self.candidates.per_row:
            raise ValueError(
                "candidates are scored by one teacher: set candidates.per_row to 0 or leave further_teachers empty"
            )
        twice = [name for name in self.privileged if self.privileged.count(name) > 1]
        if twice:
            raise ValueError(f"privileged names {twice[0]!r} more than once")
        if self.privileged and self.candidates.per_row:
            raise ValueError(
                "a candidate was not shown, so nobody knows its privileged features, such as what followed the "
                "showing: set candidates.per_row to 0 or leave privileged empty"
            )
        if self.privileged and self.states.width:
            raise ValueError(
                "a state may hold the privileged features of its row, and students would read them with it; what "
                "followed one showing can be the label of the next: set states.width to 0 or leave privileged empty"
            )
        if self.embeddings.weight and not self.labels.own:
            raise ValueError(
                "embeddings are those of the run's own teacher: with embeddings.weight above 0, labels.versions needs "
                "'own'"
            )
        if self.candidates.per_row and not (self.labels.own and self.capture.mode == CaptureMode.PREQUENTIAL.value):
            raise ValueError(
                "candidates are scored by the run's own teacher before each update: they need capture.mode "
                "'prequential' and 'own' among labels.versions"
            )
        if self.states.width and not (self.labels.own and self.capture.mode == CaptureMode.PREQUENTIAL.value):
            raise ValueError(
                "hidden states are those of the run's own teacher before each update: they need capture.mode "
                "'prequential' and 'own' among labels.versions"
            )

    def training_of_students(self, *, distilled: bool) -> TrainingConfig:
        """The training of the distilled students, or of the raw ones."""
        changes = (
            {} if distilled else {key: value for key, value in asdict(self.raw_training).items() if value is not None}
        )
        return replace(self.student_training, **changes)

    def raw_differs(self) -> dict[str, Any]:
        """In which settings of their training, and how, raw students differ from distilled ones."""
        raw, other = (asdict(self.training_of_students(distilled=distilled)) for distilled in (False, True))
        return {key: value for key, value in raw.items() if value != other[key]}

    def mixes(self) -> bool:
        """Whether the students' labels are of more than one version or teacher."""
        return len(self.labels.versions) > 1 or bool(self.further_teachers)

    def all_tasks(self) -> tuple[str, ...]:
        """``task`` first, then the others."""
        return (self.task, *(name for name in self.tasks if name != self.task))
