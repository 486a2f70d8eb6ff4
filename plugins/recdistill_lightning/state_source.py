"""A dataset with what a teacher has made of each user's past, as ordinary numeric features of its rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError, IntegrityError, UsageError
from recdistill_core.interfaces import HistoryWindow, SampleSource
from recdistill_core.schema import Schema
from recdistill_lightning.states import States, largest_code, require_shape, unpack

Ints = NDArray[np.int64]
PREFIX = "teacher_state_"
#: The share of the states that a row asks for which are there.
KNOWN = f"{PREFIX}known"
#: Rows that are worked on at once where a whole column is asked for.
ROWS = 8192


class StateSource:
    """``source`` with numeric features ``teacher_state_0 ... teacher_state_<width - 1>`` and ``teacher_state_known``.

    A row's features are the mean of the states of its user's newest ``recent`` rows strictly before
    ``event_time - delay_ms`` that have a state, and which share of ``recent`` there was; zeros where there is none. So
    the row itself, what else its moment shows, and everything later have no part in them.

    Rows, ids and labels are the source's, and so is ``snapshot_id``, which names them; the feature view is another.

    Args:
        source: the dataset, in time order. width: numbers of a state, even, >= 2.
        states: of rows of this dataset; of wider ones the first ``width`` numbers are read. None: features of the same
            names, all zero, with nothing of a teacher in them.
        recent: newest rows that are pooled, >= 1. delay_ms: how long after its row a state can be read, >= 0.

    Raises:
        UsageError: for settings out of range. IntegrityError: for states of another dataset.
        DataError: if the dataset has features of these names.
    """

    def __init__(
        self, source: SampleSource, width: int, states: States | None = None, *, recent: int = 8, delay_ms: int = 0
    ) -> None:
        try:
            require_shape(width, states.bits if states is not None else 4)
            if recent < 1 or delay_ms < 0:
                raise ValueError(f"recent must be >= 1 and delay_ms >= 0, got {recent} and {delay_ms}")
        except ValueError as error:
            raise UsageError(str(error), where="StateSource") from error
        self.source, self.width, self.recent, self.delay_ms = source, width, recent, delay_ms
        self.schema = _with_states(source.schema, width)
        self.snapshot_id, self.num_rows = source.snapshot_id, source.num_rows
        self.states = states is not None
        if states is not None:
            self._index(states.prefix(width))

    def _index(self, states: States) -> None:
        """Packed states in the order of user and row, and 8 bytes that find each; nothing else per row."""
        ids = self.source.column("example_id")
        order = np.argsort(ids, kind="stable")
        place = np.minimum(np.searchsorted(ids, states.example_id, sorter=order), max(len(ids) - 1, 0))
        rows = order[place] if len(ids) else np.empty(0, np.int64)
        of = states.facts.get("dataset", self.snapshot_id)
        if of != self.snapshot_id or len(rows) < len(states) or bool((ids[rows] != states.example_id).any()):
            raise IntegrityError(
                f"the hidden states are of dataset {of}, and this is {self.snapshot_id}"
                if of != self.snapshot_id
                else "there are hidden states of examples that this dataset has not",
                where="StateSource",
                fix="read the dataset whose rows the teacher was trained on, or train it on this one",
            )
        self._time = self.source.column("event_time")  # rows are in time order
        self._users, user = np.unique(self.source.column("user_id"), return_inverse=True)
        if "shown" in self.source.schema.gives:  # a candidate that the log names is no past of a user
            kept = np.flatnonzero(self.source.column("shown")[rows])
        else:
            kept = np.arange(len(rows))
        keys = user[rows[kept]] * self.num_rows + rows[kept]
        order = np.argsort(keys)
        self._keys, self._packed, self._bits = keys[order], states.packed[kept[order]], states.bits

    def __len__(self) -> int:
        return self.num_rows

    def row_at(self, time_ms: int) -> int:
        """As the source's."""
        return self.source.row_at(time_ms)

    def truth(self, task: str) -> NDArray[np.float64] | None:
        """As the source's."""
        return self.source.truth(task)

    def column(self, name: str) -> NDArray[Any]:
        """As the source's, and the features by their names."""
        feature = name.removeprefix("feature/")
        own = self.schema.numeric[len(self.source.schema.numeric) :]
        if feature not in own:
            return self.source.column(name)
        found = np.empty(self.num_rows, np.float32)
        users = self.source.column("user_id")
        times = self.source.column("event_time")
        for start in range(0, self.num_rows, ROWS):
            part = slice(start, start + ROWS)
            found[part] = self.features(users[part], times[part])[:, own.index(feature)]
        return found

    def batch(self, rows: Ints, history: HistoryWindow | None = None) -> Batch:
        """As the source's, with the features appended to ``numeric``."""
        batch = self.source.batch(rows, history)
        found = self.features(batch.user_id.numpy(), batch.event_time.numpy())
        return replace(batch, numeric=torch.cat([batch.numeric, torch.from_numpy(found)], dim=1))

    def features(self, user: Ints, time: Ints) -> NDArray[np.float32]:
        """``[N, width + 1]`` of users ``[N]`` at times ``[N]`` (ms UTC): what a request at that time would read."""
        found = np.zeros((len(user), self.width + 1), np.float32)
        if not self.states or not len(self._keys):
            return found
        who = np.minimum(np.searchsorted(self._users, user), len(self._users) - 1)
        first = who * self.num_rows
        until = np.searchsorted(self._time, time - self.delay_ms, side="left")  # rows strictly before
        begin, end = np.searchsorted(self._keys, first), np.searchsorted(self._keys, first + until)
        count = np.where(self._users[who] == user, np.minimum(end - begin, self.recent), 0)
        places = end[:, None] - 1 - np.arange(self.recent)
        seen = np.arange(self.recent) < count[:, None]
        codes = unpack(self._packed[np.where(seen, places, 0)], self.width, self._bits)
        total = (codes * seen[..., None]).sum(axis=1, dtype=np.int64)  # whole numbers: no order of summation matters
        found[:, :-1] = total / np.maximum(count, 1)[:, None] / largest_code(self._bits)
        found[:, -1] = count / self.recent
        return found


def _with_states(schema: Schema, width: int) -> Schema:
    names = [*(f"{PREFIX}{at}" for at in range(width)), KNOWN]
    taken = [name for name in names if name in schema.numeric or name in [f.name for f in schema.categorical]]
    if taken:
        raise DataError(
            f"the dataset has a feature {taken[0]!r} of its own",
            where="schema.yaml",
            fix="import the log with another name for it",
        )
    sides = {**schema.numeric_sides, **dict.fromkeys(names, "user")}
    return replace(schema, numeric=(*schema.numeric, *names), numeric_sides=sides)
