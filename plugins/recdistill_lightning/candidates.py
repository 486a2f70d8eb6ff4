"""A larger transfer set: items that were not shown, at the moments when others were, for a teacher to score.

A candidate is a logged row with another item in it: user, context and history are the row's, everything that is the
item's comes from an earlier row that showed that item, its *donor*. So a candidate knows nothing that was not known at
its row's time. It has no label of its own, and an id of its own, under which the teacher's logit is stored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recdistill_core.batch import Batch, TeacherSignal
from recdistill_core.errors import DataError
from recdistill_core.interfaces import HistoryWindow, SampleSource
from recdistill_core.labels import LogitStore
from recdistill_lightning.mixing import mix, uniform

Ints = NDArray[np.int64]
DRAWS = ("popularity", "uniform")
#: How often an item is drawn before a place stays empty.
ATTEMPTS = 4


@dataclass(frozen=True)
class CandidateDraw:
    """Which items stand beside a row.

    Attributes:
        per_row: candidates drawn for each row, >= 1; fewer are left where the user was shown an item before.
        by: ``popularity`` (as often as the log has shown an item so far) or ``uniform`` over the items shown so far.
        seed: of the draw, which depends on nothing else but the row.
        hard: how many times as many are drawn and scored; of those of a row the ``per_row`` that the teacher's first
            task scores highest keep their label. 1: none is dropped.
    """

    per_row: int = 3
    by: str = "popularity"
    seed: int = 0
    hard: int = 1

    def __post_init__(self) -> None:
        if self.per_row < 1:
            raise ValueError(f"per_row must be >= 1, got {self.per_row}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
        if self.hard < 1:
            raise ValueError(f"hard must be >= 1, got {self.hard}")
        if self.by not in DRAWS:
            raise ValueError(f"by must be one of {', '.join(DRAWS)}, got {self.by!r}")

    @property
    def places(self) -> int:
        """``K``, how many are drawn for each row."""
        return self.per_row * self.hard


class CandidateItems:
    """Candidates of any rows of a dataset; the same whichever batch asks for them.

    Never an item that its user has been shown until then, the row's own moment included, or that the log has named
    as a candidate for the user until then, nor twice the same item beside one row.

    Args:
        source: the dataset, in time order. draw: which items.

    Raises:
        DataError: if the dataset does not say which numeric features are the item's.
    """

    def __init__(self, source: SampleSource, draw: CandidateDraw | None = None) -> None:
        self.source, self.draw = source, draw or CandidateDraw()
        schema = source.schema
        unknown = [name for name in schema.numeric if name not in schema.numeric_sides]
        if unknown:
            raise DataError(
                f"the dataset does not say whose property the numeric feature {unknown[0]!r} is, so that no other item "
                "can be put in a row's place",
                where="schema.yaml, numeric_sides",
                fix="import the log again; in a schema file of your own give numeric features a side, such as "
                "{name: price, side: item}",
            )
        self._categorical = [at for at, feature in schema.feature_index() if feature.side == "item"]
        self._numeric = [at for at, name in enumerate(schema.numeric) if schema.numeric_sides[name] == "item"]
        self._index()

    def _index(self) -> None:
        source, rows = self.source, np.arange(self.source.num_rows, dtype=np.int64)
        self._ids, self._time = source.column("example_id"), source.column("event_time")
        self._user = np.unique(source.column("user_id"), return_inverse=True)[1].astype(np.int64)
        # what the log names as a candidate was not shown, and lends its item to no other row
        self._shown = np.flatnonzero(source.column("shown")) if "shown" in source.schema.gives else rows
        # item ids are of the vocabulary: 0 is every item that it lacks, and no candidate
        items, self._item = np.unique(source.column("item_id"), return_inverse=True)
        self._unknown = int(np.searchsorted(items, 0)) if 0 in items else -1
        shown = self._item[self._shown].astype(np.int64)
        self._showings = np.sort(shown * (rows.size + 1) + self._shown)  # rows by item, then by time
        first = np.full(items.size, rows.size, np.int64)
        np.minimum.at(first, shown, self._shown)
        self._newcomers = np.argsort(first, kind="stable")
        self._arrivals = first[self._newcomers]
        pairs, where = np.unique(self._user * items.size + self._item, return_index=True)
        self._pairs, self._first_shown, self._items = pairs, self._time[where], items.size

    def describe(self) -> dict[str, Any]:
        """What makes the candidates, for the facts of their labels."""
        return asdict(self.draw)

    def drawn(self, rows: Ints) -> tuple[Ints, Ints]:
        """``(donor [N, K], id [N, K])`` of the row positions ``rows [N]``; donor -1 where no item was found."""
        count = self.draw.places
        salt = mix(mix(np.uint64(self.draw.seed)) + np.arange(count, dtype=np.uint64))
        key = mix(self._ids[rows].astype(np.uint64)[:, None] ^ salt)
        ids = (mix(key) >> np.uint64(1)).astype(np.int64)
        donor = np.full((rows.size, count), -1, np.int64)
        for place in range(count):
            for attempt in range(ATTEMPTS):
                open_ = np.flatnonzero(donor[:, place] < 0)
                chance = uniform(key[open_, place] + np.uint64(attempt + 1))
                found = self._donors(rows[open_], chance)
                donor[open_, place] = np.where(self._fit(rows[open_], found, donor[open_, :place]), found, -1)
        return donor, ids

    def _donors(self, rows: Ints, chance: NDArray[np.float64]) -> Ints:
        """An earlier row of each row, -1 where there is none, for ``chance`` in [0, 1)."""
        if self.draw.by == "popularity":
            before = np.searchsorted(self._shown, rows)
            place = np.minimum((chance * before).astype(np.int64), max(self._shown.size - 1, 0))
            return np.where(before > 0, self._shown[place] if self._shown.size else -1, -1)
        known = np.searchsorted(self._arrivals, rows)
        item = self._newcomers[np.minimum((chance * known).astype(np.int64), self._items - 1)]
        newest = np.searchsorted(self._showings, item * (self._time.size + 1) + rows) - 1
        return np.where(known > 0, self._showings[newest] % (self._time.size + 1), -1)

    def _fit(self, rows: Ints, donor: Ints, others: Ints) -> NDArray[np.bool_]:
        """Which donors show an item that is known, new to the row's user until then, and not among ``others``."""
        item = self._item[donor]
        pair = self._user[rows] * self._items + item
        place = np.minimum(np.searchsorted(self._pairs, pair), self._pairs.size - 1)
        shown = (self._pairs[place] == pair) & (self._first_shown[place] <= self._time[rows])
        twice = ((self._item[others] == item[:, None]) & (others >= 0)).any(axis=1)
        fit: NDArray[np.bool_] = (donor >= 0) & (item != self._unknown) & ~shown & ~twice
        return fit

    def batch(self, rows: Ints, history: HistoryWindow | None) -> tuple[Batch, Ints] | None:
        """The candidates of the row positions ``rows [N]``, and the place of each in ``[N * K]``; None without any."""
        donor, ids = (part.ravel() for part in self.drawn(rows))
        places = np.flatnonzero(donor >= 0)
        if not places.size:
            return None
        beside = places // self.draw.places
        base = self.source.batch(rows[beside], history)
        giver = self.source.batch(donor[places], None)
        categorical, numeric = base.categorical.clone(), base.numeric.clone()
        categorical[:, self._categorical] = giver.categorical[:, self._categorical]
        numeric[:, self._numeric] = giver.numeric[:, self._numeric]
        made = replace(
            base,
            example_id=torch.from_numpy(ids[places]),
            item_id=giver.item_id,
            categorical=categorical,
            numeric=numeric,
            labels={task: torch.zeros_like(label) for task, label in base.labels.items()},
            observed={task: torch.zeros_like(seen) for task, seen in base.observed.items()},
            beside=torch.from_numpy(beside),
        )
        return made.validate("candidates", schema=self.source.schema), places


class CandidateLabels:
    """Candidates of training rows, with the teacher's logits.

    Args:
        candidates: which ones. store: where their labels are. version: of the labels.
        rows: ``(first, last + 1)`` row positions that will be asked for.
        keep: ``[rows of the dataset]`` bool: beside which rows candidates keep their labels; None: all.

    Raises:
        DataError: if the store lacks the version, or it labels none of them.
    """

    def __init__(
        self,
        candidates: CandidateItems,
        store: LogitStore,
        version: str,
        rows: tuple[int, int],
        keep: NDArray[np.bool_] | None = None,
    ) -> None:
        self.candidates, self.first = candidates, rows[0]
        _, ids = candidates.drawn(np.arange(*rows, dtype=np.int64))
        self.signal = store.read(version, ids.ravel())
        if keep is not None:
            kept = torch.from_numpy(np.repeat(keep[slice(*rows)], candidates.draw.places))
            self.signal = replace(self.signal, valid={task: seen & kept for task, seen in self.signal.valid.items()})
        if not any(bool(valid.any()) for valid in self.signal.valid.values()):
            raise DataError(
                f"version {version!r} has no label of any candidate of these rows",
                where=f"logit store; {candidates.describe()}",
                fix="draw the candidates as they were drawn for the teacher: same dataset, per_row, by, seed and hard",
            )

    def count(self, rows: tuple[int, int]) -> int:
        """How many candidates of the row positions ``[first, last + 1)`` have a label."""
        part = slice(*((row - self.first) * self.candidates.draw.places for row in rows))
        return int(torch.stack([valid[part] for valid in self.signal.valid.values()]).any(0).sum())

    def batch(self, rows: Ints, history: HistoryWindow | None) -> Batch | None:
        """The candidates of the row positions ``rows [N]`` that have a teacher's label; None without any."""
        found = self.candidates.batch(rows, history)
        if found is None:
            return None
        made, places = found
        count = self.candidates.draw.places
        index = torch.from_numpy((rows[places // count] - self.first) * count + places % count)
        signal: TeacherSignal = self.signal.map(lambda column: column.index_select(0, index))
        labelled = torch.stack(list(signal.valid.values())).any(0).nonzero().squeeze(1)
        return made.with_teacher(signal).rows(labelled) if labelled.numel() else None
