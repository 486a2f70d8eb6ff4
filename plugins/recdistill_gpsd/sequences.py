"""The users' event sequences before a cutoff: what is trained on, what is held out, and how often each value occurs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recdistill_core.errors import DataError, UsageError
from recdistill_core.schema import OOV, Schema

Ints = NDArray[np.int64]
#: Users whose events are read at a time; bounds memory and changes nothing.
CHUNK = 4096


@runtime_checkable
class EventSource(Protocol):
    """A dataset that hands out whole event sequences, besides what a ``SampleSource`` does."""

    schema: Schema
    snapshot_id: str

    def users(self) -> pa.Table:
        """``event_start`` and ``event_count`` of every user: place of the first event, and how many there are."""

    def events(self, places: Ints, counts: Ints) -> dict[str, Ints]:
        """Events ``[places[i], places[i] + counts[i])`` of every ``i``, end to end: the fields, action and time."""


@dataclass(frozen=True)
class Sequences:
    """Every user's events that lie strictly before the cutoff, by place in the event table; no event is held here.

    Attributes:
        source: reads the events. cutoff: ms UTC; no event at or after it is ever read into a batch.
        start: ``[U]`` place of a user's first event. count: ``[U]`` events before the cutoff.
        holdout: newest events of each user that are not trained on.
    """

    source: EventSource
    cutoff: int
    start: Ints
    count: Ints
    holdout: int

    @property
    def trained(self) -> Ints:
        """``[U]`` events of each user that may be trained on."""
        return np.maximum(self.count - self.holdout, 0)

    def in_words(self) -> str:
        """How many events and users there are, held out, too few, and to train on; the parts make up the whole."""
        whole, left = int(self.count.sum()), self.trained
        lone, of_users = int((left == 1).sum()), int((left > 1).sum())
        return "; ".join(
            [
                f"{whole:,} events of {int((self.count > 0).sum()):,} users before the cutoff",
                f"{whole - int(left.sum()):,} held out",
                *([f"{lone:,} left alone, which tell nothing"] if lone else []),
                f"{int(left.sum()) - lone:,} of {of_users:,} users trained on",
            ]
        )

    def windows(self, length: int, newest: bool) -> tuple[Ints, Ints]:
        """Places and counts ``[W]`` of the training pieces, each of 2 to ``length + 1`` events: inputs and one more.

        Pieces of one user overlap by one event, so that every event but the user's first is a target once.
        """
        count = self.trained
        pieces = np.where(count < 2, 0, 1 if newest else -(-(count - 1) // length))
        user = np.repeat(np.arange(len(count)), pieces)
        back = np.arange(len(user)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        end = count[user] - back * length
        first = np.maximum(end - (length + 1), 0)
        return self.start[user] + first, end - first

    def chunks(self, counts: Ints) -> Iterator[tuple[Ints, dict[str, Ints]]]:
        """``(users, their first counts events end to end)``, some users at a time."""
        for first in range(0, len(counts), CHUNK):
            users = np.arange(first, min(first + CHUNK, len(counts)))
            yield users, self.source.events(self.start[users], counts[users])

    def occurrences(self, sizes: Mapping[str, int]) -> dict[str, Ints]:
        """``{field: [size]}`` how often each value occurs in the events that are trained on.

        Args:
            sizes: of the fields; a value outside counts as out of vocabulary, id 0.
        """
        found = {name: np.zeros(size, np.int64) for name, size in sizes.items()}
        for _, events in self.chunks(self.trained):
            for name, total in found.items():
                value = events[name]
                known = np.where((value >= 0) & (value < len(total)), value, OOV)
                total += np.bincount(known, minlength=len(total))
        return found


def read_sequences(source: object, cutoff: int | None, holdout: int) -> Sequences:
    """The sequences of a dataset.

    Args:
        source: the dataset. cutoff: ms UTC, None for the end of the log. holdout: 0, 1 or 2.

    Raises:
        UsageError: if the source cannot hand out sequences. DataError: if the dataset has no events, if time goes
            backwards in a sequence, an action code is none of the schema's, or no sequence has the two events that a
            target takes.
    """
    if not isinstance(source, EventSource):
        raise UsageError(
            f"{type(source).__name__} hands out no event sequences",
            where="dataset.source",
            fix="use a source with users() and events(), such as parquet",
        )
    if not source.schema.events:
        raise DataError(
            "the dataset has no events, and pre-training learns to tell the next one",
            where=f"snapshot {source.snapshot_id}",
            fix="import the log again with actions",
        )
    table = source.users()
    start = table["event_start"].to_numpy().astype(np.int64)
    every = table["event_count"].to_numpy().astype(np.int64)
    count, newest = np.zeros_like(every), 0
    whole = Sequences(source, 0, start, every, 0)
    for users, events in whole.chunks(every):
        time, owner = events["time"], np.repeat(users, every[users])
        _require_order(time, owner)
        _require_actions(events.get("action"), owner, source.schema)
        kept = np.ones(len(time), np.bool_) if cutoff is None else time < cutoff
        count[users] = np.bincount(owner[kept] - users[0], minlength=len(users))
        newest = max(newest, int(time.max(initial=0)))
    found = Sequences(source, newest + 1 if cutoff is None else cutoff, start, count, holdout)
    if not (found.trained >= 2).any():
        raise DataError(
            f"no user has two events to train on before {found.cutoff} ms"
            + (f", {holdout} held out" if holdout else ""),
            where=f"{int(every.sum()):,} events of {len(every):,} users; {int(count.sum()):,} lie before the cutoff",
            fix="move the cutoff (pretrain.until, or split.train_from of the run) to a later time, or lower holdout",
        )
    return found


def _require_actions(code: Ints | None, owner: Ints, schema: Schema) -> None:
    """Raise DataError where an action code is none of the schema's: a token would say something else."""
    if code is None or not schema.actions:
        return
    unknown = np.flatnonzero((code < 0) | (code >= schema.num_action_codes))
    if unknown.size:
        known = f"[0, {schema.num_action_codes}) of {', '.join(schema.actions)}"
        raise DataError(
            f"action code {int(code[unknown[0]])} is outside {known}",
            where=f"an event of user {int(owner[unknown[0]])}",
            fix="give bit codes of the schema's actions; an action that it lacks is left out",
        )


def _require_order(time: Ints, owner: Ints) -> None:
    """Raise DataError unless every user's times ascend: what lies before the cutoff would be no prefix."""
    back = np.flatnonzero((np.diff(time) < 0) & (np.diff(owner) == 0))
    if back.size:
        raise DataError(
            "the time of an event goes backwards",
            where=f"user {int(owner[back[0]])}: {int(time[back[0] + 1])} after {int(time[back[0]])} ms",
            fix="import the log again",
        )
