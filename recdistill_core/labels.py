"""What a logit store holds and how students choose from it: capture modes, versions, writers, policies.

A label is a teacher's raw logit of one (example, task), captured once, under the version of the teacher that gave it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:  # what a store holds can be listed without torch
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from recdistill_core.batch import TeacherSignal


class CaptureMode(StrEnum):
    """How a label came to be; ``LEAKY`` marks labels from a model that had trained on the example."""

    PREQUENTIAL = "prequential"
    OUT_OF_FOLD = "out_of_fold"
    EXTERNAL = "external"
    LEAKY = "leaky"


@dataclass(frozen=True)
class LabelVersion:
    """One teacher version in a store.

    Attributes:
        version: teacher fingerprint, the key of its labels.
        mode: how the labels were captured.
        tasks: tasks that have logits.
        view: hash of the feature view the teacher saw.
        count: number of committed examples, those with revoked labels included.
        facts: whatever the writer noted (dataset snapshot, seed, ...). ``trained_until`` (ms since the epoch, UTC) is
            the newest event that the teacher had seen.
        duplicates: labels that were delivered again, equal to the first, and dropped.
        quarantined: implausible values that were set aside.
        revoked: why labels are invisible; empty where none is.
        revoked_since: labels scored at this time or later (ms since the epoch, UTC) are revoked; None: all.
    """

    version: str
    mode: CaptureMode
    tasks: tuple[str, ...]
    view: str
    count: int
    facts: Mapping[str, Any]
    duplicates: int = 0
    quarantined: int = 0
    revoked: str = ""
    revoked_since: int | None = None


class LabelWriter(Protocol):
    """Collects labels of one version; nothing is visible before :meth:`commit`."""

    def append(self, example_id: Tensor, logits: Mapping[str, Tensor], *, step: int, scored_at: int) -> None:
        """Add raw logits ``{task: [N]}`` of ``example_id [N]``, computed at training ``step``.

        A label that is there already, committed or pending, is dropped where the second one is equal.

        Raises:
            LeakError: if an example already has another label of this version.
        """

    def commit(self) -> LabelVersion:
        """Make everything appended visible at once, durably."""

    def abort(self) -> None:
        """Forget everything appended."""


class LogitStore(Protocol):
    """One raw logit per (example, task, teacher version)."""

    def writer(
        self, version: str, *, tasks: Sequence[str], mode: CaptureMode, view: str, facts: Mapping[str, Any]
    ) -> LabelWriter:
        """A writer for one version."""

    def versions(self) -> tuple[LabelVersion, ...]:
        """Committed versions, oldest first."""

    def read(self, version: str, example_id: NDArray[np.int64]) -> TeacherSignal:
        """Labels of ``example_id [M]`` in that order; ``valid`` is False where the store has none.

        Raises:
            DataError: if the store has no such version.
            IntegrityError: if a segment is missing or damaged.
        """

    def snapshot_id(self) -> str:
        """Digest of what is committed now."""


class LabelPolicy(StrEnum):
    """Which of several versions labels a row, or that all of them do."""

    EXACT = "exact"
    ANY_OF = "any_of"
    LATEST_BEFORE_EVENT = "latest_before_event"
    ALL_OF = "all_of"


@dataclass(frozen=True)
class LabelChoice:
    """The teacher versions that a student may learn from, and which of them labels a row.

    Attributes:
        versions: the allowed ones.
        policy: ``exact``: the only one there is. ``any_of``: the first in this order that has a visible label.
            ``latest_before_event``: of those whose ``facts["trained_until"]`` is not after the row's event, the one
            with the latest ``trained_until`` that has a visible label. ``all_of``: the mean of the logits of all that
            have a visible label; each of them is told, too, in ``TeacherSignal.members``.
    """

    versions: tuple[str, ...]
    policy: LabelPolicy = LabelPolicy.EXACT

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", LabelPolicy(self.policy))  # a name will do; ValueError lists them
        if not self.versions or len(set(self.versions)) != len(self.versions):
            raise ValueError(f"versions must be distinct, at least one, got {list(self.versions)}")
        if self.policy == LabelPolicy.EXACT and len(self.versions) != 1:
            raise ValueError(f"the policy 'exact' takes one version, got {list(self.versions)}")


@dataclass(frozen=True)
class AlignedLabels:
    """Labels by row of a dataset.

    Attributes:
        signal: ``[N]`` per task.
        origin: ``[N]`` int16: place in ``choice.versions`` of the version that labels the row, the first of several;
            -1 for none.
        choice: what was asked for.
        snapshot: id of the store's commit that was read.
    """

    signal: TeacherSignal
    origin: Tensor
    choice: LabelChoice
    snapshot: str

    def coverage(self, rows: tuple[int, int] | None = None) -> dict[str, dict[str, float]]:
        """``{task: {version: share of the rows that it labels}}``.

        Args:
            rows: row positions ``[first, last + 1)``; None: all.
        """
        part = slice(*(rows or (0, None)))
        origin = self.origin[part]
        shares: dict[str, dict[str, float]] = {}
        for task, valid in self.signal.valid.items():
            seen = valid[part]
            members = [member.valid[task][part] for member in self.signal.members]
            shares[task] = {
                version: _share(members[place] if members else (origin == place) & seen)
                for place, version in enumerate(self.choice.versions)
            }
        return shares

    def covered(self, rows: tuple[int, int] | None = None) -> dict[str, float]:
        """``{task: share of the rows that have a label}``; ``rows`` as for :meth:`coverage`."""
        part = slice(*(rows or (0, None)))
        return {task: _share(valid[part]) for task, valid in self.signal.valid.items()}

    def masked(self, keep: Tensor) -> AlignedLabels:
        """These labels where ``keep [N]`` is True, and none elsewhere."""
        signal = replace(
            _masked(self.signal, keep), members=tuple(_masked(member, keep) for member in self.signal.members)
        )
        return replace(self, signal=signal, origin=self.origin.masked_fill(~keep, -1))


def _masked(signal: TeacherSignal, keep: Tensor) -> TeacherSignal:
    valid = {task: seen & keep for task, seen in signal.valid.items()}
    logits = {task: logit.masked_fill(~valid[task], 0.0) for task, logit in signal.logits.items()}
    return replace(signal, logits=logits, valid=valid)


def full_name(name: str, known: Iterable[str]) -> str:
    """The version of ``known`` that ``name`` is, or, with 8 characters or more, that alone begins with it.

    ``name`` itself where there is none, or more than one: whoever looks it up then says so.
    """
    versions = list(known)
    found = [version for version in versions if version.startswith(name)]
    return found[0] if name not in versions and len(name) >= 8 and len(found) == 1 else name


def _share(which: Tensor) -> float:
    """Share of ``which [N]`` bool that is True; 0 where N is 0."""
    return int(which.sum()) / len(which) if len(which) else 0.0


@runtime_checkable
class PinnedStore(Protocol):
    """A logit store whose commits can be read as they were, and kept for those who have read them."""

    def at(self, snapshot: str) -> LogitStore:
        """This store as it was after the commit ``snapshot``, read-only.

        Raises:
            DataError: if there is none of this id.
        """

    def pin(self, name: str, by: str) -> object:
        """Keep what the snapshot that is read needs, whatever is tidied up later.

        Args:
            name: of the pin: letters, digits, ``.``, ``-`` and ``_``. by: who wants it, for those who tidy up.
        """


@runtime_checkable
class AlignedStore(Protocol):
    """A logit store that keeps labels by row of a dataset, so that an epoch reads them by position."""

    def aligned(
        self, choice: LabelChoice, *, dataset: str, example_id: NDArray[np.int64], event_time: NDArray[np.int64]
    ) -> AlignedLabels:
        """Labels of all rows of a dataset, read from one snapshot.

        Args:
            choice: versions and policy.
            dataset: the dataset's snapshot id.
            example_id, event_time: ``[N]`` of its rows; times in ms since the epoch, UTC.
        """
