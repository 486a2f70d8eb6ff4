"""Labels of one or several teacher versions by row of a dataset, from any logit store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recdistill_core.batch import TeacherSignal
from recdistill_core.errors import DataError, suggest
from recdistill_core.labels import AlignedLabels, LabelChoice, LabelPolicy, LabelVersion, LogitStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def choose_labels(
    store: LogitStore, choice: LabelChoice, example_id: NDArray[np.int64], event_time: NDArray[np.int64]
) -> AlignedLabels:
    """Labels of rows; a later commit to the store is not waited for, so hand in a store that stays as it is.

    Args:
        store: where the labels are. choice: versions and policy.
        example_id, event_time: ``[N]``; times in ms since the epoch, UTC.

    Raises:
        DataError: if a version is not there, the versions have different tasks, or one does not say until when its
            teacher was trained and the policy asks for it.
    """
    entries = require_versions(store, choice)
    if choice.policy == LabelPolicy.ALL_OF:
        members = [store.read(entry.version, example_id) for entry in entries]
        return mean_labels(choice, members, store.snapshot_id())
    until = _trained_until(entries) if choice.policy == LabelPolicy.LATEST_BEFORE_EVENT else None
    order = range(len(entries)) if until is None else sorted(range(len(entries)), key=until.__getitem__, reverse=True)
    chosen = _Chosen(entries[0].tasks, len(example_id))
    for place in order:
        open_ = chosen.origin < 0
        if until is not None:
            open_ &= torch.from_numpy(event_time >= until[place])
        rows = open_.nonzero().flatten()
        if len(rows):
            chosen.take(place, rows, store.read(entries[place].version, example_id[rows.numpy()]))
    return AlignedLabels(chosen.signal(_name(choice)), chosen.origin, choice, store.snapshot_id())


def require_versions(store: LogitStore, choice: LabelChoice) -> list[LabelVersion]:
    """The versions of ``choice``, in its order.

    Raises:
        DataError: if one is not there, or they have different tasks.
    """
    known = {entry.version: entry for entry in store.versions()}
    entries = [_require(known, version) for version in choice.versions]
    for entry in entries[1:]:
        if set(entry.tasks) != set(entries[0].tasks):
            raise DataError(
                f"versions {entries[0].version!r} and {entry.version!r} have labels of different tasks",
                where=f"logit store; {', '.join(entries[0].tasks)} and {', '.join(entry.tasks)}",
                fix="choose versions with the same tasks",
            )
    return entries


def mean_labels(choice: LabelChoice, members: Sequence[TeacherSignal], snapshot: str) -> AlignedLabels:
    """What the policy ``all_of`` makes of the labels of each version.

    Args:
        choice: the versions. members: labels ``[N]`` of each, in the same order. snapshot: commit of the store.
    """
    logits, valid = {}, {}
    for task in members[0].logits:
        clean = [member.clean(task) for member in members]
        count = torch.stack([seen for _, seen in clean]).sum(0)
        logits[task] = torch.stack([logit for logit, _ in clean]).sum(0) / count.clamp(min=1)
        valid[task] = count > 0
    some = torch.stack([torch.stack(list(member.valid.values())).any(0) for member in members])
    origin = torch.where(some.any(0), some.int().argmax(0), -1).to(torch.int16)
    return AlignedLabels(TeacherSignal(logits, valid, _name(choice), members=tuple(members)), origin, choice, snapshot)


def unlabelled(
    store: LogitStore,
    versions: Sequence[str],
    example_id: NDArray[np.int64],
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.bool_]:
    """``[N]``: which of ``example_id [N]`` have a visible label of all tasks in none of ``versions``.

    Args:
        store: any logit store. versions: without one, no example has a label. example_id: ``[N]``.
        progress: told ``(versions done, versions)``.

    Raises:
        DataError: if the store has no such version.
    """
    missing = torch.ones(len(example_id), dtype=torch.bool)
    for done, version in enumerate(versions, start=1):
        left = missing.nonzero().flatten()
        if len(left):
            valid = store.read(version, example_id[left.numpy()]).valid
            missing[left] = ~torch.stack(list(valid.values())).all(0)
        if progress:
            progress(done, len(versions))
    return missing.numpy()


class _Chosen:
    """Labels ``[N]`` as they are filled in, version by version."""

    def __init__(self, tasks: tuple[str, ...], count: int) -> None:
        self.logits = {task: torch.zeros(count) for task in tasks}
        self.valid = {task: torch.zeros(count, dtype=torch.bool) for task in tasks}
        self.scored_at = torch.zeros(count, dtype=torch.int64)
        self.origin = torch.full((count,), -1, dtype=torch.int16)
        self.timed = True

    def take(self, place: int, rows: Tensor, found: TeacherSignal) -> None:
        """Fill in what ``found [M]`` has for the row positions ``rows [M]``."""
        some = torch.stack(list(found.valid.values())).any(0)
        rows = rows[some]
        for task in self.logits:
            self.logits[task][rows] = found.logits[task][some]
            self.valid[task][rows] = found.valid[task][some]
        self.timed = self.timed and found.scored_at is not None
        if found.scored_at is not None:
            self.scored_at[rows] = found.scored_at[some]
        self.origin[rows] = place

    def signal(self, version: str) -> TeacherSignal:
        """What was filled in; logits are 0 where not valid."""
        made = TeacherSignal(self.logits, self.valid, version)
        return replace(made, scored_at=self.scored_at) if self.timed else made


def _require(known: Mapping[str, LabelVersion], version: str) -> LabelVersion:
    if version not in known:
        raise DataError(
            f"the logit store has no version {version!r}{suggest(version, known)}",
            where=f"versions: {', '.join(known) or 'none'}",
            fix="name a version that is there, or capture the teacher's labels first",
        )
    return known[version]


def _trained_until(entries: list[LabelVersion]) -> list[int]:
    """``facts["trained_until"]`` of each version, ms since the epoch, UTC."""
    found = []
    for entry in entries:
        until = entry.facts.get("trained_until")
        if not isinstance(until, int) or isinstance(until, bool):
            raise DataError(
                f"version {entry.version!r} does not say until when its teacher was trained, which the policy "
                f"'{LabelPolicy.LATEST_BEFORE_EVENT}' goes by",
                where=f"logit store; facts: {', '.join(entry.facts) or 'none'}",
                fix="capture with facts={'trained_until': <ms since the epoch, UTC>}, or choose another policy",
            )
        found.append(until)
    return found


def _name(choice: LabelChoice) -> str:
    """What a signal of several versions says of its version."""
    if choice.policy == LabelPolicy.EXACT:
        return choice.versions[0]
    return f"{choice.policy}({', '.join(choice.versions)})"
