"""Sources that break their contract: the kit's own one with one fault each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from wrong import Wrong, wrong

from recdistill_core.batch import Batch
from recdistill_core.testing.feed import MemorySource


class Backwards(MemorySource):
    """Newest first."""

    def column(self, name: str) -> Any:
        return super().column(name)[::-1].copy()


class Short(MemorySource):
    """Forgets rows of its columns."""

    def column(self, name: str) -> Any:
        return super().column(name)[:10]


class After(MemorySource):
    """The first row after a time, not at it."""

    def row_at(self, time_ms: int) -> int:
        return super().row_at(time_ms + 1)


class Sorted(MemorySource):
    """Ignores the order asked for."""

    def batch(self, rows: Any, history: Any = None) -> Batch:
        return super().batch(np.sort(rows), history)


class Filled(MemorySource):
    """Takes a label that is not observed for 0."""

    def column(self, name: str) -> Any:
        return np.nan_to_num(super().column(name))


class Changed(MemorySource):
    """Gives other batches."""

    def change(self, batch: Batch) -> Batch:
        return batch

    def batch(self, rows: Any, history: Any = None) -> Batch:
        return self.change(super().batch(rows, history))


class Placed(Changed):
    """A feature that hangs on the place in the batch."""

    def change(self, batch: Batch) -> Batch:
        return replace(batch, numeric=batch.numeric + torch.arange(len(batch))[:, None])


class Greedy(MemorySource):
    """A row more than was asked for, where the columns are not looked at."""

    def batch(self, rows: Any, history: Any = None) -> Batch:
        return super().batch(np.append(rows, rows[-1]) if len(rows) == 7 else rows, history)


class Stateful(MemorySource):
    """Goes on where it was, whatever is asked for."""

    cursor = 0

    def batch(self, rows: Any, history: Any = None) -> Batch:
        first, self.cursor = (0, 0) if len(rows) > 7 else (self.cursor, self.cursor + len(rows))
        return super().batch((rows - rows[0] + first) % self.num_rows, history)


def with_history(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    return batch if batch.history is None else replace(batch, history=change(batch.history))


class Future(Changed):
    """Shows the next event too."""

    def change(self, batch: Batch) -> Batch:
        return with_history(
            batch, lambda h: replace(h, row_end=torch.minimum(h.row_end + 1, h.lengths[h.row_to_history]))
        )


class NewestFirst(Changed):
    """Histories the other way round."""

    def change(self, batch: Batch) -> Batch:
        def turned(history: Any) -> Any:
            index = torch.cat(
                [torch.arange(b - 1, a - 1, -1) for a, b in zip(history.offsets, history.offsets[1:], strict=False)]
            )
            return replace(history, events={name: column[index] for name, column in history.events.items()})

        return with_history(replace(batch, event_time=batch.event_time + 10**9), turned)


class Unseen(Changed):
    """Shows nothing."""

    def change(self, batch: Batch) -> Batch:
        return with_history(batch, lambda h: replace(h, row_end=torch.zeros_like(h.row_end)))


class NoHistory(Changed):
    """Has events and gives none."""

    def change(self, batch: Batch) -> Batch:
        return replace(batch, history=None)


class Whole(MemorySource):
    """Whole histories, whatever the window."""

    def batch(self, rows: Any, history: Any = None) -> Batch:
        batch = self.whole.rows(torch.as_tensor(rows))
        return batch if history is not None else replace(batch, history=None)


class Unasked(MemorySource):
    """A history for those who want none."""

    def batch(self, rows: Any, history: Any = None) -> Batch:
        return super().batch(rows, history) if history else self.whole.rows(torch.as_tensor(rows))


class Opening(MemorySource):
    """Another snapshot for every opening."""

    opened = 0

    def __init__(self) -> None:
        super().__init__()
        Opening.opened += 1
        self.snapshot_id = f"opening {Opening.opened}"


class Nameless(MemorySource):
    """No snapshot."""

    def __init__(self) -> None:
        super().__init__()
        self.snapshot_id = ""


class Drifting(MemorySource):
    """Other rows in every opening, under one snapshot."""

    opened = 0

    def __init__(self) -> None:
        Drifting.opened += 1
        super().__init__(seed=Drifting.opened)
        self.snapshot_id = "always"


def changed(**columns: Callable[[Batch], Any]) -> Callable[[], MemorySource]:
    """A source whose batches have other columns."""

    class Other(Changed):
        """Other columns."""

        def change(self, batch: Batch) -> Batch:
            return replace(batch, **{name: make(batch) for name, make in columns.items()})

    return Other


class Logit(MemorySource):
    """A truth that is a logit."""

    def truth(self, task: str) -> Any:
        return np.linspace(-3, 3, self.num_rows)


class HalfTruth(MemorySource):
    """A truth for some rows."""

    def truth(self, task: str) -> Any:
        return np.full(5, 0.5)


def source(check: str, kind: Callable[[], Any], fault: str) -> Wrong:
    return wrong(check, "source", lambda config, context: kind(), fault)


ORDER = "a_batch_is_the_columns_in_the_order_asked_for"
CURSOR = "reading_on_from_any_cursor_is_one_pass"
PAST = "history_holds_only_earlier_events"
WINDOW = "history_is_what_its_window_says"
OPENINGS = "two_openings_are_equal"
CONTRACT = "every_batch_keeps_the_data_contract"
WRONG = [
    source("rows_are_in_time_order", Backwards, "goes back in time from row "),
    source("rows_are_in_time_order", Short, "has 10 event times and says that it has 96 rows"),
    source("row_at_is_the_first_row_at_or_after_a_time", After, "is the first at or after 16"),
    source(ORDER, Sorted, "gives another example_id in a batch than in the column, for rows in shuffled order"),
    source(ORDER, Filled, "gives another label of task 'click' in a batch than in the column"),
    source(ORDER, Placed, "in a batch in shuffled order: numeric differ"),
    source(ORDER, lambda: MemorySource(rows=1), "has an example of 1 rows: give it two or more"),
    source(CURSOR, Stateful, "gives another row 1 when it is read on from row 1: "),
    source(CURSOR, Greedy, "gives 8 rows when it is read on from row 0; 7 were asked for"),
    source(PAST, Future, ": no past"),
    source(PAST, NewestFirst, "its events in another order than oldest first"),
    source(PAST, Unseen, "has an example without a single event before a row"),
    source(PAST, NoHistory, "gives no history where a HistoryWindow asks for one"),
    source(WINDOW, Whole, " events for HistoryWindow(length=1, stride=1, oldest=0); it has "),
    source(WINDOW, Unasked, "gives a history that no HistoryWindow asks for"),
    source(OPENINGS, Opening, "says snapshot_id is 'opening "),
    source(OPENINGS, Nameless, "has no snapshot_id"),
    source(OPENINGS, Drifting, "in a second opening: "),
    source(CONTRACT, changed(numeric=lambda b: b.numeric / 0), "breaks the data contract: numeric feature is NaN"),
    source(CONTRACT, changed(example_id=lambda b: b.request_id), "gives one example_id to two rows"),
    source(CONTRACT, changed(labels=lambda b: {"click": b.labels["click"]}), "gives labels of ['click']; not"),
    source(CONTRACT, changed(categorical=lambda b: b.categorical[:, :2]), "gives categorical of shape (96, 2)"),
    source(CONTRACT, changed(numeric=lambda b: b.numeric[:, :1]), "gives numeric of shape (96, 1); the schema has 2"),
    source(CONTRACT, changed(categorical=lambda b: b.categorical + 3), "; its vocabulary has 9 entries"),
    source(CONTRACT, changed(item_id=lambda b: b.item_id - 1), "gives item_id -1; its vocabulary has 13 entries"),
    source(CONTRACT, changed(position=lambda b: None), "promises position in its schema and gives none"),
    source(CONTRACT, changed(propensity=lambda b: None), "promises propensity in its schema and gives none"),
    source(
        "truth_is_a_probability", Logit, "has a truth of task 'click' outside [0, 1]: it is a probability, no logit"
    ),
    source("truth_is_a_probability", HalfTruth, "has a truth of shape (5,), not (96,)"),
]
