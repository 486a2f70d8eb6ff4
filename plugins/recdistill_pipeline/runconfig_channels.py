"""The parts of a run configuration that say what passes from the teacher to the students."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from recdistill_core.labels import CaptureMode, LabelPolicy

CAPTURES = (CaptureMode.PREQUENTIAL.value, CaptureMode.OUT_OF_FOLD.value, CaptureMode.LEAKY.value)
#: Stands for the labels that the run's own teacher makes.
OWN = "own"
#: When the teacher's embeddings are taken.
MOMENTS = ("student_start", "end")


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
class LabelsConfig:
    """Which labels of the store the students learn from.

    Attributes:
        versions: teacher versions; ``own`` stands for what this run's teachers make. Empty: ``own`` alone. Without
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
class EmbeddingsConfig:
    """What students' embeddings learn of the teacher's (DE, arXiv 2012.04357).

    Attributes:
        weight: of the squared distance beside the other losses, finite and >= 0; 0: none of it.
        experts: projections of which one is chosen for each entity, >= 1.
        of: ``item``, or names of categorical features that teacher and students embed.
        at: ``student_start`` (the teacher's embeddings before it has learnt from any row of the students) or ``end``
            (of its whole training, with the labels of these rows in them; every result is marked).
        temperature, temperature_end: of the choice among experts at the first and the last batch, finite and > 0.
    """

    weight: float = 0.0
    experts: int = 4
    of: list[str] = field(default_factory=lambda: ["item"])
    at: str = "student_start"
    temperature: float = 1.0
    temperature_end: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight must be finite and >= 0, got {self.weight}")
        if self.experts < 1:
            raise ValueError(f"experts must be >= 1, got {self.experts}")
        if not self.of or len(set(self.of)) != len(self.of):
            raise ValueError(f"of must name one or more different kinds, got {self.of}")
        if self.at not in MOMENTS:
            raise ValueError(f"at must be one of {', '.join(MOMENTS)}, got {self.at!r}")
        for name in ("temperature", "temperature_end"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and > 0, got {getattr(self, name)}")
