"""The data that checks feed to components: every optional column is there, and histories go on after each row."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from recdistill_core.batch import Batch, History, TeacherSignal
from recdistill_core.interfaces import HistoryWindow
from recdistill_core.schema import Categorical, EventField, KeepRates, Schema

#: The task that single-task checks look at.
TASK = "click"
#: Start of the sample log, ms UTC.
START = 1_650_000_000_000
MINUTE = 60_000


def sample_schema(keep_rates: tuple[float, float] = (0.9, 0.3)) -> Schema:
    """A schema with two tasks, features of all three sides, events with a second field, and every capability.

    Args:
        keep_rates: of positive and negative rows, the same for both tasks.
    """
    return Schema(
        tasks=(TASK, "like"),
        categorical=(
            Categorical("user_id", "user_id", "user"),
            Categorical("item_id", "item_id", "item"),
            Categorical("author", "author", "item"),
            Categorical("tab", "tab"),
        ),
        numeric=("age", "duration"),
        events=(EventField("item", "item_id"), EventField("author", "author")),
        actions=(TASK, "like"),
        vocabularies={"user_id": 9, "item_id": 13, "author": 5, "tab": 3},
        keep_rates={task: KeepRates(*keep_rates) for task in (TASK, "like")},
        gives=("position", "propensity", "request_groups"),
    )


def sample_batch(schema: Schema | None = None, rows: int = 24, seed: int = 0) -> Batch:
    """``rows`` impressions of 6 users in requests of 4, with labels, teacher labels and histories of 0 to 10 events.

    The first user has no event; every other history goes on after the last row that refers to it, so that a component
    which looks beyond ``row_end`` is found out. Ids include 0, which is out of vocabulary.
    """
    schema = schema or sample_schema()
    draw = torch.Generator().manual_seed(seed)
    row = torch.arange(rows)
    owner = row // 4 % 6
    history, event_time = _history(schema, owner, draw)
    ids = [torch.randint(schema.vocabulary_size(c.vocabulary), (rows,), generator=draw) for c in schema.categorical]
    by_name = dict(zip((c.name for c in schema.categorical), ids, strict=True))
    labels = {task: torch.randint(2, (rows,), generator=draw).float() for task in schema.tasks}
    observed = {task: row % 9 != 5 + place for place, task in enumerate(schema.tasks)}
    return Batch(
        example_id=row + 1_000,
        request_id=row // 4,
        user_id=owner + 1,
        item_id=by_name["item_id"],
        event_time=event_time,
        categorical=torch.stack(ids, dim=1),
        numeric=torch.randn(rows, len(schema.numeric), generator=draw),
        labels=labels,
        observed=observed,
        history=history,
        position=row % 4,
        propensity=0.05 + 0.95 * torch.rand(rows, generator=draw),
        keep_rates={task: (rates.positive, rates.negative) for task, rates in schema.keep_rates.items()},
        teacher=TeacherSignal(
            logits={task: torch.randn(rows, generator=draw) for task in schema.tasks},
            valid=dict.fromkeys(schema.tasks, row % 7 != 2),
            version="sample",
            scored_at=event_time,
        ),
    ).validate("the kit's sample batch")


def _history(schema: Schema, owner: Tensor, draw: torch.Generator) -> tuple[History, Tensor]:
    """Histories of 0, 4, 6, ... events, of which rows see at most all but two; and the rows' times ``[N]``."""
    lengths = torch.tensor([0, 4, 6, 7, 9, 10])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    total = int(offsets[-1])
    place = torch.arange(total) - torch.repeat_interleave(offsets[:-1], lengths)
    row_end = ((lengths[owner] - 1).clamp(min=0).float() * torch.rand(len(owner), generator=draw)).long()
    events = {
        field.name: torch.randint(schema.vocabulary_size(field.vocabulary), (total,), generator=draw)
        for field in schema.events
    }
    events["action"] = torch.randint(schema.num_action_codes, (total,), generator=draw)
    events["time"] = START + place * MINUTE
    return History(events, offsets, owner, row_end), START + row_end * MINUTE - MINUTE // 2


def windowed(batch: Batch, window: HistoryWindow | None) -> Batch:
    """The batch as a data module hands it to a model that asks for ``window``: no history, or one cut to size."""
    if window is None or batch.history is None:
        return replace(batch, history=None)
    whole = batch.history
    start = window.start(whole.row_end)
    pairs, owner = torch.unique(torch.stack([whole.row_to_history, start], dim=1), dim=0, return_inverse=True)
    kept, lengths = [], [0]
    for number, begin in pairs.tolist():
        first, end = int(whole.offsets[number]), int(whole.offsets[number + 1])
        oldest = window.oldest if begin else 0
        last = min(first + begin + window.length - oldest, end)
        kept += [torch.arange(first, first + oldest), torch.arange(first + begin, last)]
        lengths.append(oldest + last - first - begin)
    events = {name: column[torch.cat(kept)] for name, column in whole.events.items()}
    row_end = whole.row_end - start + (start > 0) * window.oldest
    return replace(batch, history=History(events, torch.tensor(lengths).cumsum(0), owner, row_end))
