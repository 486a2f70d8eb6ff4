"""The data contract: flat impressions, ragged histories, logits before the sigmoid.

Axes: ``N`` rows (one impression of one item to one user), ``U`` distinct histories in the batch, ``E`` events of all
histories end to end, ``Fc`` categorical and ``Fn`` numeric features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recdistill_core.errors import DataError

if TYPE_CHECKING:
    from recdistill_core.schema import Schema

#: A raw logit beyond this is taken for corrupt: sigmoid(+-40) is 1 - 4e-18, which no calibrated model says.
ABSURD_LOGIT = 40.0


@dataclass(frozen=True)
class History:
    """Events of ``U`` histories, oldest first, stored once however many rows refer to them.

    Attributes:
        events: ``{"item": [E] int64, "action": [E] int64 bit code, "time": [E] int64 ms UTC, ...}``.
        offsets: ``[U + 1]`` int64; history ``u`` is ``events[offsets[u]:offsets[u + 1]]``.
        row_to_history: ``[N]`` int64 in ``[0, U)``.
        row_end: ``[N]`` int64; the row sees the first ``row_end`` events of its history and no other.
    """

    events: Mapping[str, Tensor]
    offsets: Tensor
    row_to_history: Tensor
    row_end: Tensor

    @property
    def lengths(self) -> Tensor:
        """``[U]`` int64 events per history."""
        return self.offsets[1:] - self.offsets[:-1]

    def last(self, count: int) -> tuple[Mapping[str, Tensor], Tensor]:
        """The newest ``count`` events that each row may see.

        Returns:
            ``({name: [N, count]}, seen [N, count] bool)``; column 0 is the newest; unseen places hold 0.
        """
        back = torch.arange(count, device=self.offsets.device)
        seen = back < self.row_end[:, None]
        index = (self.offsets[self.row_to_history] + self.row_end - 1)[:, None] - back
        index = torch.where(seen, index, torch.zeros_like(index))
        if self.events["item"].numel() == 0:
            return {name: torch.zeros_like(index) for name in self.events}, seen
        return {name: torch.where(seen, column[index], 0) for name, column in self.events.items()}, seen


@dataclass(frozen=True)
class TeacherSignal:
    """What the store knows of the rows.

    Attributes:
        logits: ``{task: [N] float32}``, raw, before the sigmoid; arbitrary where not valid.
        valid: ``{task: [N] bool}``.
        version: the teacher version that wrote the logits.
        scored_at: ``[N]`` int64 ms UTC, or None.
        members: where the logits are means over several teachers, the labels of each of them; else empty.
    """

    logits: Mapping[str, Tensor]
    valid: Mapping[str, Tensor]
    version: str
    scored_at: Tensor | None = None
    members: tuple[TeacherSignal, ...] = ()

    def map(self, change: Callable[[Tensor], Tensor]) -> TeacherSignal:
        """These labels with ``change`` applied to every tensor, those of the members too."""
        changed: TeacherSignal = _map(self, change)
        return changed

    def clean(self, task: str) -> tuple[Tensor, Tensor]:
        """``(logit [N], valid [N] bool)`` with NaN, infinite and absurd logits (beyond +-40) masked and set to 0."""
        logit = self.logits[task]
        valid = self.valid[task] & torch.isfinite(logit) & (logit.abs() <= ABSURD_LOGIT)
        return torch.where(valid, logit, torch.zeros_like(logit)), valid


@dataclass(frozen=True)
class Scores:
    """``logits {task: [N]}`` before the sigmoid, and optionally ``hidden {name: [N, *]}`` activations."""

    logits: Mapping[str, Tensor]
    hidden: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Share:
    """Which batch of all processes the rows of this process are a part of.

    Attributes:
        ids: ``[G]`` int64 example ids of the whole batch, on the CPU; known to every process.
        processes: how many share it, >= 1.
        idle: True where none of its rows is left for this process: the rows it holds are another one's, stand in so
            that it can take part in the step, and count nowhere.
    """

    ids: Tensor
    processes: int
    idle: bool = False

    def weight(self, rows: int) -> float:
        """What to multiply a mean over this process's ``rows`` by.

        The mean over the processes, which data-parallel training takes of the gradients, is then the mean over all
        ``G`` rows.
        """
        return 0.0 if self.idle else rows * self.processes / len(self.ids)


@dataclass(frozen=True)
class Batch:
    """``N`` impressions.

    Attributes:
        example_id, request_id, user_id, item_id: ``[N]`` int64. ``user_id`` identifies a user; ``item_id`` is the id
            in the item vocabulary (0 = out of vocabulary).
        event_time: ``[N]`` int64 ms UTC.
        categorical: ``[N, Fc]`` int64, 0 = out of vocabulary.
        numeric: ``[N, Fn]`` float32, finite.
        labels: ``{task: [N] float32}`` of 0 and 1; arbitrary where not observed.
        observed: ``{task: [N] bool}``; "not observed yet" is not "label 0".
        history: events before each row, or None.
        position: ``[N]`` int64, 0 = top, or None.
        propensity: ``[N]`` float32 in (0, 1], or None.
        keep_rates: ``{task: (positive, negative)}`` known keep rates, or None.
        teacher: teacher labels, or None.
        share: which batch of all processes this is a part of, or None where there is one process.
        candidates: further rows of the same users and moments with items that were not shown, without any label;
            None: none. See :class:`recdistill_lightning.CandidateItems`.
        beside: of candidates ``[N]`` int64, the place in their batch of the row that each stands beside, else None.
    """

    example_id: Tensor
    request_id: Tensor
    user_id: Tensor
    item_id: Tensor
    event_time: Tensor
    categorical: Tensor
    numeric: Tensor
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    observed: Mapping[str, Tensor] = field(default_factory=dict)
    history: History | None = None
    position: Tensor | None = None
    propensity: Tensor | None = None
    keep_rates: Mapping[str, tuple[float, float]] | None = None
    teacher: TeacherSignal | None = None
    share: Share | None = None
    candidates: Batch | None = None
    beside: Tensor | None = None

    def __len__(self) -> int:
        return int(self.example_id.shape[0])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on ``device``."""
        moved: Batch = _map(self, lambda tensor: tensor.to(device))
        return moved

    def with_teacher(self, teacher: TeacherSignal | None) -> Batch:
        """The same batch with these teacher labels."""
        return replace(self, teacher=teacher)

    def without_outcomes(self) -> Batch:
        """The same batch without labels and teacher labels: what a model is shown, so that none reaches a logit."""
        return replace(self, labels={}, observed={}, teacher=None, candidates=None)

    def rows(self, index: Tensor) -> Batch:
        """The rows ``index`` ([M] int64), without candidates; their histories are shared, not copied."""
        count = len(self)
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < count:
            raise IndexError(f"rows {int(index.min())} to {int(index.max())} of a batch with {count} rows")

        def pick(tensor: Tensor) -> Tensor:
            return tensor[index]

        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        kept = {"history", "keep_rates", "teacher", "candidates"}
        picked = {name: _map(value, pick) for name, value in plain.items() if name not in kept}
        history = self.history and replace(
            self.history, row_to_history=self.history.row_to_history[index], row_end=self.history.row_end[index]
        )
        signal = self.teacher and self.teacher.map(pick)
        return Batch(**picked, history=history, keep_rates=self.keep_rates, teacher=signal)

    def validate(self, where: str = "batch", schema: Schema | None = None) -> Batch:
        """This batch, or a DataError that names the first column and row that break the contract.

        Args:
            where: what the message calls the batch.
            schema: of the dataset; where given, action codes must be among its own.
        """
        count = len(self)
        for name, column in self._columns().items():
            if column.shape[0] != count:
                raise DataError(f"{name} has {column.shape[0]} rows, example_id has {count}", where=where)
        _refuse(~torch.isfinite(self.numeric), "numeric feature is NaN or infinite", where, "impute it before import")
        for task, label in self.labels.items():
            if task not in self.observed:
                raise DataError(f"task {task!r} has labels but no observed mask", where=where)
            wrong = self.observed[task] & (label != 0) & (label != 1)
            _refuse(wrong, f"label of task {task!r} is neither 0 nor 1", where, "soft targets belong in a logit store")
        if self.propensity is not None:
            wrong = ~((self.propensity > 0) & (self.propensity <= 1))
            _refuse(wrong, "propensity is outside (0, 1]", where, "drop rows that could not have been shown")
        if self.history is not None:
            owner, lengths = self.history.row_to_history, self.history.lengths
            _refuse((owner < 0) | (owner >= len(lengths)), "row refers to no history", where, "rebuild the batch")
            too_far = (self.history.row_end < 0) | (self.history.row_end > lengths[owner])
            _refuse(too_far, "row refers to events beyond the end of its history", where, "rebuild the batch")
            self._validate_events(self.history, where, schema)
        return self

    def _validate_events(self, history: History, where: str, schema: Schema | None) -> None:
        time, fix = history.events["time"], "sort each user's events by time before import"
        inside = torch.ones(max(len(time) - 1, 0), dtype=torch.bool, device=time.device)
        starts = history.offsets[(history.offsets > 0) & (history.offsets < len(time))]
        inside[starts - 1] = False
        _refuse((time[1:] < time[:-1]) & inside, "time goes backwards after an event", f"{where}.history", fix, "event")
        newest = history.offsets[history.row_to_history] + history.row_end - 1
        late = torch.zeros_like(newest, dtype=torch.bool)
        seeing = history.row_end > 0
        late[seeing] = time[newest[seeing]] >= self.event_time[seeing]
        _refuse(late, "row sees an event that is not before it", where, "cut its row_end at its own event_time")
        if schema is not None and "action" in history.events:
            code = history.events["action"]
            what = f"action code outside [0, {schema.num_action_codes}) of {', '.join(schema.actions)}"
            fix = "give bit codes of the schema's actions; an action that it lacks is left out"
            _refuse((code < 0) | (code >= schema.num_action_codes), what, f"{where}.history", fix, "event")

    def _columns(self) -> dict[str, Tensor]:
        """Every tensor with one entry per row, by the name that messages give it."""
        ids, features = ("request_id", "user_id", "item_id", "event_time"), ("categorical", "numeric")
        plain = (*ids, *features, "position", "propensity", "beside")
        found = {name: getattr(self, name) for name in plain}
        found |= {f"label of task {task!r}": column for task, column in self.labels.items()}
        found |= {f"observed mask of task {task!r}": column for task, column in self.observed.items()}
        if self.history is not None:
            found |= {"row_to_history": self.history.row_to_history, "row_end": self.history.row_end}
        if self.teacher is not None:
            found |= {f"teacher logit of task {task!r}": column for task, column in self.teacher.logits.items()}
        return {name: column for name, column in found.items() if column is not None}


def _refuse(wrong: Tensor, what: str, where: str, fix: str, axis: str = "row") -> None:
    if bool(wrong.any()):
        first = wrong.nonzero()[0].tolist()
        place = f"{where}, {axis} {first[0]}" + (f", column {first[1]}" if len(first) > 1 else "")
        raise DataError(what, where=place, fix=fix)


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``change`` applied to every tensor in dataclasses, mappings and tuples."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map(entry, change) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(_map(entry, change) for entry in value)
    if isinstance(value, History | TeacherSignal | Batch):
        plain = {entry.name: _map(getattr(value, entry.name), change) for entry in fields(value)}
        return type(value)(**plain)
    return value
