"""The run configuration: what a YAML file for ``recdistill run`` may say."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from recdistill_core.labels import CaptureMode, LabelPolicy
from recdistill_pipeline.embeddings_config import EmbeddingsConfig as EmbeddingsConfig

CAPTURES = (CaptureMode.PREQUENTIAL.value, CaptureMode.OUT_OF_FOLD.value, CaptureMode.LEAKY.value)
#: Stands for the labels that the run's own teacher makes.
OWN = "own"


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
class TrainingConfig:
    """One model's training; see ``Optimisation``, ``ReadOrder`` and ``Phases`` of :mod:`recdistill_lightning`."""

    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: bool = False
    batch_size: int = 2048
    window_hours: float = 24.0
    within: str = "shuffle"
    batch_epochs: int = 1

    def __post_init__(self) -> None:
        from recdistill_lightning import Optimisation, ReadOrder

        if self.batch_epochs < 1:
            raise ValueError(f"batch_epochs must be >= 1, got {self.batch_epochs}")
        Optimisation(self.lr, self.weight_decay, self.warmup_steps, self.decay)
        ReadOrder(self.batch_size, self.window_hours, self.within)


@dataclass(frozen=True)
class RawTrainingConfig:
    """Where a raw student's training differs from ``student_training``, so that each side has settings chosen for it.

    Attributes:
        lr, weight_decay, batch_epochs: None: as in ``student_training``.
    """

    lr: float | None = None
    weight_decay: float | None = None
    batch_epochs: int | None = None


@dataclass(frozen=True)
class TeacherTrainingConfig(TrainingConfig):
    """As :class:`TrainingConfig`, but read by user: in a shuffled window labels would leak through histories."""

    within: str = "user"

    def __post_init__(self) -> None:
        from recdistill_lightning.order import SHUFFLED

        super().__post_init__()
        if self.within in SHUFFLED and self.window_hours > 0:
            raise ValueError(
                "within must be user or time for a teacher: in a shuffled window it could be trained on a later row of "
                "a user, whose history holds the label of a row that is captured only then"
            )


@dataclass(frozen=True)
class CaptureConfig:
    """How teacher logits become labels.

    Attributes:
        mode: ``prequential`` (from the training forward pass, before the update), ``out_of_fold`` (from copies of the
            teacher that have not seen the row; the one for teachers trained several times over the same rows) or
            ``leaky`` (scored after training; only for showing the damage).
        folds: copies of the teacher for ``out_of_fold``: >= 2 by user, >= 1 by time.
        fold_by: ``user`` or ``time``; see :func:`recdistill_lightning.folds.make_folds`.
        allow_leaky: must be true for ``leaky``, and for students of versions with leaky labels.
        warmup_steps: first training steps whose logits are not captured.
        min_coverage: share of the students' training rows that must have a label, in [0, 1].
    """

    mode: str = "prequential"
    folds: int = 5
    fold_by: str = "user"
    allow_leaky: bool = False
    warmup_steps: int = 0
    min_coverage: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in CAPTURES:
            raise ValueError(f"mode must be one of {', '.join(CAPTURES)}, got {self.mode!r}")
        from recdistill_lightning.folds import FOLDS_BY

        if self.fold_by not in FOLDS_BY:
            raise ValueError(f"fold_by must be one of {', '.join(FOLDS_BY)}, got {self.fold_by!r}")
        least = 2 if self.fold_by == "user" else 1
        if self.folds < least:
            raise ValueError(f"folds must be >= {least} by {self.fold_by}, got {self.folds}")
        if not 0.0 <= self.min_coverage <= 1.0:
            raise ValueError(f"min_coverage must lie in [0, 1], got {self.min_coverage}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be >= 0, got {self.warmup_steps}")


@dataclass(frozen=True)
class PretrainedConfig:
    """What the teacher takes over from a sequence model that ``teacher pretrain`` has trained (GPSD, arXiv 2506.03699).

    Attributes:
        path: its folder; empty: nothing is taken over.
        transfer: regular expressions; a parameter that one of them finds in its name is loaded.
        freeze: regular expressions; what is loaded and found by one of them is not trained. Of an embedding table only
            the rows of values that pre-training has seen are loaded, and only they are frozen.
    """

    path: str = ""
    transfer: list[str] = field(default_factory=lambda: ["^tokens\\."])
    freeze: list[str] = field(default_factory=lambda: ["^tokens\\."])

    def __post_init__(self) -> None:
        for name in ("transfer", "freeze"):
            for pattern in getattr(self, name):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{name} holds {pattern!r}, which is no regular expression: {error}") from error
        if not self.transfer:
            raise ValueError("transfer needs at least one regular expression; an empty path takes nothing over")


@dataclass(frozen=True)
class LabelsConfig:
    """Which labels of the store the students learn from.

    Attributes:
        versions: teacher versions; ``own`` stands for what this run's teacher makes. Empty: ``own`` alone. Without
            ``own`` no teacher is trained: versions that others have published are read, and for the teacher's side of
            eta they must label the test rows, too.
        policy: with several versions ``any_of`` (the first of them that has a label), ``latest_before_event`` (the
            one whose teacher was trained last before the row) or ``all_of`` (the mean of all that have a label; for
            strategy ``multi_teacher``, each of them); with one, ``exact``.
        snapshot: commit of the store to read, 8 digits of its id or more, for published versions; empty: the newest.
        examples: a Parquet file with a column ``example_id``: only these examples keep their labels; empty: all.
        without: such a file of examples whose labels are left out; empty: none.
        allow_other_dataset: true where labels that were made for another dataset (a newer import of the same log) are
            for examples of the same ids.
    """

    versions: list[str] = field(default_factory=list)
    policy: str = LabelPolicy.EXACT.value
    snapshot: str = ""
    examples: str = ""
    without: str = ""
    allow_other_dataset: bool = False

    def __post_init__(self) -> None:
        policies = [policy.value for policy in LabelPolicy]
        if self.policy not in policies:
            raise ValueError(f"policy must be one of {', '.join(policies)}, got {self.policy!r}")
        if len(set(self.versions)) != len(self.versions) or not all(self.versions):
            raise ValueError(f"versions must be distinct and not empty, got {self.versions}")
        if len(self.versions) > 1 and self.policy == LabelPolicy.EXACT:
            raise ValueError(f"{len(self.versions)} versions need a policy: any_of, latest_before_event or all_of")
        if self.snapshot and self.own:
            raise ValueError("snapshot is for published versions; labels of this run's teacher are later than any")

    @property
    def own(self) -> bool:
        """Whether this run's own teacher is among the versions."""
        return not self.versions or OWN in self.versions


@dataclass(frozen=True)
class CandidatesConfig:
    """Items that were not shown, which the teacher scores for the students to learn from.

    Attributes:
        per_row: candidates beside each training row; 0: none.
        by: ``popularity`` or ``uniform``; see :class:`recdistill_lightning.CandidateDraw`.
        hard: how many times as many are scored; of a row's the ``per_row`` that the teacher scores highest are kept.
        weight: how much a candidate's soft loss counts beside a row's, finite and >= 0.
    """

    per_row: int = 0
    by: str = "popularity"
    hard: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.per_row < 0:
            raise ValueError(f"per_row must be >= 0, got {self.per_row}")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight must be finite and >= 0, got {self.weight}")
        from recdistill_lightning.candidates import CandidateDraw

        CandidateDraw(max(1, self.per_row), self.by, hard=self.hard)


@dataclass(frozen=True)
class StatesConfig:
    """Hidden states of the teacher, which students read of their users' past rows (LoopFM, arXiv 2605.29280).

    Attributes:
        width: numbers that are kept of a row's state, even; 0: no states. bits: of each number, 2 to 8.
        recent: newest rows of the user whose states are averaged, >= 1.
        delay_minutes: a state can be read only by rows that are more than this much later, >= 0.
        of: which activation of the teacher, by its name in ``Scores.hidden``.
    """

    width: int = 0
    bits: int = 4
    recent: int = 8
    delay_minutes: int = 0
    of: str = "state"

    def __post_init__(self) -> None:
        if self.width < 0 or self.width % 2:
            raise ValueError(f"width must be even and >= 0, got {self.width}")
        from recdistill_lightning.states import require_shape

        require_shape(self.width or 2, self.bits)
        if self.recent < 1:
            raise ValueError(f"recent must be >= 1, got {self.recent}")
        if self.delay_minutes < 0:
            raise ValueError(f"delay_minutes must be >= 0, got {self.delay_minutes}")
        if not self.of:
            raise ValueError("of must name an activation of the teacher, such as state")


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
        twice = [name for name in self.privileged if self.privileged.count(name) > 1]
        if twice:
            raise ValueError(f"privileged names {twice[0]!r} more than once")
        if self.privileged and self.candidates.per_row:
            raise ValueError(
                "a candidate was not shown, so nobody knows its privileged features, such as what followed the "
                "showing: set candidates.per_row to 0 or leave privileged empty"
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

    def all_tasks(self) -> tuple[str, ...]:
        """``task`` first, then the others."""
        return (self.task, *(name for name in self.tasks if name != self.task))
