"""What must not reach a logit: labels, teacher labels, other rows, later events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from recdistill_core.batch import Batch, History, TeacherSignal
from recdistill_core.interfaces import TrainableTeacher
from recdistill_core.schema import Schema
from recdistill_core.testing.cases import Case, NotApplicable, check
from recdistill_core.testing.models import (
    ROUNDING,
    Way,
    blended,
    cut,
    event_places,
    in_training,
    moved,
    served,
    unrepeatable,
    ways,
)

WEEK = 7 * 24 * 3_600_000


@check("teacher", "student")
def labels_do_not_reach_a_logit(case: Case) -> None:
    """Flipping the labels, or what is observed of them, changes no logit by one bit, served or in training."""
    made = case.build()
    batch = case.batch(made)
    seen = {task: torch.ones_like(mask) for task, mask in batch.observed.items()}
    variants = {
        "the labels are flipped": replace(batch, labels={task: 1 - label for task, label in batch.labels.items()}),
        "the observed masks are flipped": replace(batch, observed={task: ~m for task, m in batch.observed.items()}),
        "every label is 1 and observed": replace(
            batch, labels={task: mask.float() for task, mask in seen.items()}, observed=seen
        ),
    }
    _nothing_moves(case, made, batch, variants, "lets a label reach a logit", "a logit is scored before its label")


@check("teacher", "student")
def teacher_labels_do_not_reach_a_logit(case: Case) -> None:
    """Other teacher labels in the batch, invalid ones and none at all change no logit by one bit."""
    made = case.build()
    batch = case.batch(made)
    signal = batch.teacher
    assert signal is not None
    logits = {task: 3 - logit for task, logit in signal.logits.items()}
    invalid = {task: torch.zeros_like(mask) for task, mask in signal.valid.items()}
    variants = {
        "the teacher labels are others": batch.with_teacher(TeacherSignal(logits, signal.valid, "other")),
        "no teacher label is valid": batch.with_teacher(replace(signal, valid=invalid)),
        "the batch has no teacher labels": batch.with_teacher(None),
    }
    rule = "teacher labels belong in the distillation loss; nobody has them when the model is used"
    _nothing_moves(case, made, batch, variants, "lets a teacher label reach a logit", rule)


@check("student")
def propensity_does_not_reach_a_logit(case: Case) -> None:
    """Another logged propensity changes no logit by one bit, since a served student is not told it."""
    made = case.build()
    batch = case.batch(made)
    assert batch.propensity is not None
    variants = {"the propensities are others": replace(batch, propensity=1.05 - batch.propensity)}
    rule = "the logging policy's propensity is not known when a student serves; a debiaser may use it"
    _nothing_moves(case, made, batch, variants, "lets the propensity reach a logit", rule)


@check("teacher", "student")
def other_rows_do_not_reach_a_logit(case: Case) -> None:
    """Other rows change no logit beyond rounding, neither when it is served nor in a teacher's training."""
    made = case.build()
    trained = [in_training(case, dropout=False)] if isinstance(made, TrainableTeacher) else []
    batch, others = case.batch(made), case.batch(made, seed=1)
    others = replace(others, numeric=others.numeric + 3, event_time=others.event_time + WEEK)
    odd = torch.arange(len(batch)) % 2 == 1
    for way in (served(case), *trained):
        alike = blended(batch, others, torch.zeros_like(odd))
        before = way(alike)
        unrepeatable(case, way, alike, before)
        for changed in (odd, ~odd):
            where = moved(before, way(blended(batch, others, changed)), rows=~changed, tolerance=ROUNDING)
            case.require(
                not where,
                f"lets other rows reach a logit: {way.name} moves {where}, when only other rows change; compute each "
                "row alone, with no statistic of the batch (a teacher's BatchNorm in training: use LayerNorm)",
            )


@check("teacher", "student")
def later_events_do_not_reach_a_logit(case: Case) -> None:
    """Events at or after a row's ``row_end`` change its logit neither by their content nor by being there."""
    made = case.build()
    batch = case.batch(made)
    if batch.history is None:
        raise NotApplicable("it asks for no history")
    for way in ways(case, made, dropout=False):
        unrepeatable(case, way, batch, way(batch))
        for end in torch.unique(batch.history.row_end).tolist():
            _end_is_the_end(case, way, batch, int(end))


def _end_is_the_end(case: Case, way: Way, batch: Batch, end: int) -> None:
    """A batch of the rows that see at most ``end`` events: with other events from there on, and with none."""
    assert batch.history is not None
    some = batch.rows((batch.history.row_end <= end).nonzero()[:, 0])
    assert some.history is not None
    before = way(some)
    others = {"changes": _other_events(some.history, case.schema, end), "is cut off": cut(some.history, end)}
    for how, history in others.items():
        where = moved(before, way(replace(some, history=history)), tolerance=ROUNDING)
        case.require(
            not where,
            f"reads future events: {way.name} moves {where}, when what comes from event {end} on {how} and the "
            f"row sees at most {end} events; read events [0, row_end) of a row's history and nothing behind them",
        )


def _other_events(past: History, schema: Schema, end: int) -> History:
    """The histories with every field changed from event ``end`` on; times stay in order."""
    later = event_places(past) >= end
    sizes = {entry.name: schema.vocabulary_size(entry.vocabulary) for entry in schema.events}
    sizes["action"] = schema.num_action_codes

    def changed(name: str, column: Tensor) -> Tensor:
        return column + WEEK if name == "time" else (column + 1) % sizes[name]

    events = {name: torch.where(later, changed(name, column), column) for name, column in past.events.items()}
    return replace(past, events=events)


def _nothing_moves(case: Case, made: Any, batch: Batch, variants: Mapping[str, Batch], fault: str, rule: str) -> None:
    """Fail with ``fault`` and ``rule`` unless every variant of the batch gives the same logits, bit for bit."""
    for way in ways(case, made):
        before = way(batch)
        unrepeatable(case, way, batch, before)
        for change, other in variants.items():
            where = moved(before, way(other))
            case.require(not where, f"{fault}: {way.name} moves {where}, when {change}; {rule}")
