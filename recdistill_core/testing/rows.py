"""Rows in any order, alone, without history and with unknown ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from recdistill_core.batch import Batch, History
from recdistill_core.schema import OOV, Schema
from recdistill_core.testing.cases import Case, NotApplicable, check
from recdistill_core.testing.models import ROUNDING, Logits, Way, moved, reason, served


@check("teacher", "student")
def rows_may_come_in_any_order(case: Case) -> None:
    """A batch whose rows are shuffled gives the same logits, shuffled, up to rounding."""
    made = case.build()
    batch, way = case.batch(made), served(case, made)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    before = {task: logit[order] for task, logit in way(batch).items()}
    where = moved(before, way(batch.rows(order)), tolerance=ROUNDING)
    case.require(
        not where,
        f"depends on the order of rows: {way.name} moves {where} of a shuffled batch; return logits in the batch's "
        "order, and let a row read its own history (row_to_history) alone",
    )


@check("teacher", "student")
def rows_may_come_one_by_one(case: Case) -> None:
    """A row alone, with its own history alone, gives the logits that it gives among others, up to rounding."""
    made = case.build()
    batch, way = case.batch(made), served(case, made)
    whole = way(batch)
    for row in range(len(batch)):
        before = {task: logit[row : row + 1] for task, logit in whole.items()}
        try:
            after = way(alone(batch, row))
        except Exception as error:  # whatever the component raises for one row
            case.fail(f"cannot take a batch of one row: {way.name} raises {reason(error)}")
        where = moved(before, after, tolerance=ROUNDING)
        case.require(
            not where,
            f"gives a row alone another logit than among others: {way.name} of row {row} alone moves {where}; what is "
            "padded must count for nothing, and a tensor of one row must keep its axis (no bare squeeze)",
        )


@check("teacher", "student")
def rows_without_history_have_logits(case: Case) -> None:
    """Where no user of the batch has an event yet, as on a log's first day, every row has a finite logit."""
    made = case.build()
    batch = case.batch(made)
    past = batch.history
    if past is None:
        raise NotApplicable("it asks for no history")
    empty = replace(
        past,
        events={name: column[:0] for name, column in past.events.items()},
        offsets=torch.zeros_like(past.offsets),
        row_end=torch.zeros_like(past.row_end),
    )
    way = served(case, made)
    _finite(case, way, replace(batch, history=empty), "no row has a history (no event at all in the batch)")


@check("teacher", "student")
def rows_out_of_vocabulary_have_logits(case: Case) -> None:
    """Rows and events whose ids are all 0, out of vocabulary, have finite logits."""
    made = case.build()
    batch, way = case.batch(made), served(case, made)
    _finite(case, way, _unknown(batch), "every id is 0, out of vocabulary")


@check("student")
def unknown_ids_count_as_out_of_vocabulary(case: Case) -> None:
    """An id that its vocabulary does not hold, too large or negative, gives the logits of id 0, bit for bit."""
    made = case.build()
    batch, way = case.batch(made), served(case, made)
    for place, size, with_id in _places_of_ids(case.schema, batch):
        before = way(with_id(OOV))
        for value in (-1, size, 10**9):
            try:
                after = way(with_id(value))
            except Exception as error:  # whatever the component raises for such an id
                case.fail(f"cannot take {place} = {value}, of a vocabulary of {size}: {reason(error)}; {READ_ROW_0}")
            where = moved(before, after)
            case.require(
                not where,
                f"takes {place} = {value}, of a vocabulary of {size}, for something else than out of vocabulary: "
                f"{way.name} moves {where}; {READ_ROW_0}",
            )


READ_ROW_0 = "read row 0 for ids outside [0, size), as FeatureEmbedding does: nothing maps ids before a served model"


def alone(batch: Batch, row: int) -> Batch:
    """One row with its own history and no other."""
    one = batch.rows(torch.tensor([row]))
    past = one.history
    if past is None:
        return one
    first, last = past.offsets[past.row_to_history[0] :][:2].tolist()
    own = History(
        events={name: column[first:last] for name, column in past.events.items()},
        offsets=torch.tensor([0, last - first]),
        row_to_history=torch.zeros(1, dtype=torch.long),
        row_end=past.row_end,
    )
    return replace(one, history=own)


def _finite(case: Case, way: Way, batch: Batch, when: str) -> None:
    try:
        found: Logits = way(batch)
    except Exception as error:  # whatever the component raises
        case.fail(f"cannot score when {when}: {way.name} raises {reason(error)}")
    for task, logit in found.items():
        case.require(bool(torch.isfinite(logit).all()), f"gives NaN or infinite logits of task {task!r} when {when}")


def _unknown(batch: Batch) -> Batch:
    """The batch with every id at 0; actions and times stay."""
    past = batch.history
    if past is not None:
        events = {name: column if name in ("action", "time") else column * OOV for name, column in past.events.items()}
        past = replace(past, events=events)
    return replace(batch, item_id=batch.item_id * OOV, categorical=batch.categorical * OOV, history=past)


def _places_of_ids(schema: Schema, batch: Batch) -> Iterator[tuple[str, int, Callable[[int], Batch]]]:
    """Where a batch holds ids: name, size of the vocabulary, and the batch with every other id there replaced."""
    past = batch.history

    def item(value: int) -> Batch:
        return replace(batch, item_id=_every_other(batch.item_id, value))

    yield "Batch.item_id", schema.num_items, item
    for column, feature in schema.feature_index():

        def feature_id(value: int, column: int = column) -> Batch:
            changed = batch.categorical.clone()
            changed[:, column] = _every_other(changed[:, column], value)
            return replace(batch, categorical=changed)

        yield feature.name, schema.vocabulary_size(feature.vocabulary), feature_id
    for entry in schema.events if past is not None else ():

        def event_id(value: int, name: str = entry.name) -> Batch:
            assert past is not None
            return replace(
                batch, history=replace(past, events={**past.events, name: _every_other(past.events[name], value)})
            )

        yield f"event {entry.name}", schema.vocabulary_size(entry.vocabulary), event_id


def _every_other(ids: Tensor, value: int) -> Tensor:
    return torch.where(torch.arange(len(ids)) % 2 == 0, value, ids)
