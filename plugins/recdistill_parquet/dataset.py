"""Reads a dataset: memory-mapped columns, batches by row position, histories stored once per user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from recdistill_core.batch import Batch, History
from recdistill_core.errors import DataError, IntegrityError, suggest
from recdistill_core.interfaces import HistoryWindow
from recdistill_parquet import dataset_format as fmt
from recdistill_parquet.dataset_parts import PartReader


class ParquetSource:
    """A dataset directory as a :class:`recdistill_core.interfaces.SampleSource`.

    Rows are in the order of (event_time, example_id). Opening maps files and reads none of them; instances pickle as
    their path, so that data-loading workers map the same pages.

    Args:
        path: the directory that :func:`recdistill_parquet.dataset_writer.write_dataset` made.

    Attributes:
        schema: features, vocabularies and tasks. snapshot_id: digest of the files. num_rows: number of impressions.
        manifest: counts, time range, origin and files.

    Raises:
        DataError: if the directory is no dataset, or of another format version.
        IntegrityError: naming a file that is missing, truncated or not readable, or an edited schema.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.manifest = fmt.read_manifest(self.path)
        fmt.check_hash(self.path / fmt.SCHEMA, self._entry(fmt.SCHEMA))
        self.schema = fmt.read_schema(self.path)
        self.snapshot_id = self.manifest.snapshot_id
        self.num_rows = int(self.manifest.counts["rows"])
        size = self.manifest.part_rows
        self._impressions = PartReader(self.path / fmt.IMPRESSIONS, self.num_rows, size)
        events = int(self.manifest.counts["events"])
        self._events = PartReader(self.path / fmt.EVENTS, events, size) if self.schema.events else None
        truth = (self.path / fmt.TRUTH).is_dir()
        self._truth = PartReader(self.path / fmt.TRUTH, self.num_rows, size) if truth else None
        rates = self.schema.keep_rates.items()
        self._keep_rates = {task: (rate.positive, rate.negative) for task, rate in rates} or None

    def __reduce__(self) -> tuple[type[ParquetSource], tuple[Path]]:
        return ParquetSource, (self.path,)

    def __len__(self) -> int:
        return self.num_rows

    def row_at(self, time_ms: int) -> int:
        """Position of the first row at or after a time (ms UTC); ``num_rows`` where there is none."""
        return self._impressions.first_at_or_after("event_time", time_ms)

    def column(self, name: str) -> NDArray[Any]:
        """One whole column ``[num_rows]``; treat it as read-only.

        ``example_id, request_id, user_id, item_id, event_time, history_end, position, propensity``, ``label_<task>``
        (float32, NaN where not observed), ``observed_<task>`` (bool), and every feature: by its name, or as
        ``feature/<name>`` where a column above has that name too.

        Raises:
            DataError: if there is no such column.
        """
        kind, _, rest = name.partition("_")
        if kind in ("label", "observed") and rest in self.schema.tasks:
            stored = self._impressions.column(f"label_{rest}")
            seen = stored != fmt.UNOBSERVED
            return seen if kind == "observed" else np.where(seen, stored, np.nan).astype(np.float32)
        plain = [found for found in self._impressions.names if found not in ("categorical", "numeric")]
        if name in plain:
            return self._impressions.column(name)
        feature = name.removeprefix("feature/")
        categorical = [entry.name for entry in self.schema.categorical]
        for matrix, names in (("categorical", categorical), ("numeric", list(self.schema.numeric))):
            if feature in names:
                return np.ascontiguousarray(self._impressions.column(matrix, names.index(feature)))
        known = [*plain, *categorical, *self.schema.numeric]
        raise DataError(
            f"the dataset has no column {name!r}{suggest(name, known)}",
            where=str(self.path),
            fix=f"use one of {', '.join(known)}",
        )

    def batch(self, rows: NDArray[np.int64], history: HistoryWindow | None = None) -> Batch:
        """The impressions at ``rows [N]`` in that order, as CPU tensors.

        Args:
            rows: positions in ``[0, num_rows)``; an impression may occur twice.
            history: how much history each row sees, or None for none.

        Raises:
            DataError: if ``history`` is asked for and the dataset has none.
            IndexError: if a row is outside the dataset.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.num_rows:
            raise IndexError(
                f"rows reach from {rows.min()} to {rows.max()}; the dataset has rows 0 to {self.num_rows - 1}"
            )
        names = [name for name in self._impressions.names if history is not None or not name.startswith("history_")]
        found = self._impressions.take(rows, names)
        stored = {task: found[f"label_{task}"] for task in self.schema.tasks}
        seen = {task: label != fmt.UNOBSERVED for task, label in stored.items()}
        empty = np.zeros((len(rows), 0))
        return Batch(
            example_id=_tensor(found["example_id"], np.int64),
            request_id=_tensor(found["request_id"], np.int64),
            user_id=_tensor(found["user_id"], np.int64),
            item_id=_tensor(found["item_id"], np.int64),
            event_time=_tensor(found["event_time"], np.int64),
            categorical=_tensor(found.get("categorical", empty), np.int64),
            numeric=_tensor(found.get("numeric", empty), np.float32),
            labels={task: _tensor(label * seen[task], np.float32) for task, label in stored.items()},
            observed={task: torch.from_numpy(mask) for task, mask in seen.items()},
            position=_tensor(found["position"], np.int64) if "position" in found else None,
            propensity=_tensor(found["propensity"], np.float32) if "propensity" in found else None,
            keep_rates=self._keep_rates,
            history=self._history(found, history) if history is not None else None,
        )

    def _history(self, found: Mapping[str, NDArray[Any]], window: HistoryWindow) -> History:
        """Histories of the rows: one per (user, start), the oldest and ``[start, largest end of its rows)``."""
        if self._events is None:
            raise DataError(
                "the dataset has no history",
                where=str(self.path),
                fix="import the log again with `actions`, or use models without `history`",
            )
        end, start = found["history_end"], window.start(found["history_end"])
        # A user has at least one event (the impression's own), so this place names user and start.
        place, example, row_to_history = np.unique(
            found["history_start"] + start, return_index=True, return_inverse=True
        )
        oldest = np.where(start > 0, window.oldest, 0)
        recent = np.zeros(len(place), np.int64)
        np.maximum.at(recent, row_to_history, end - start)
        begins = np.stack([found["history_start"][example], place], axis=1)
        lengths = np.stack([oldest[example], recent], axis=1)
        events = self._events.take_ranges(begins.ravel(), lengths.ravel(), self._events.names)
        return History(
            events={name: torch.from_numpy(column) for name, column in events.items()},
            offsets=torch.from_numpy(np.concatenate(([0], np.cumsum(lengths.sum(axis=1))))),
            row_to_history=_tensor(row_to_history, np.int64),
            row_end=torch.from_numpy(oldest + end - start),
        )

    def truth(self, task: str) -> NDArray[np.float64] | None:
        """True probabilities ``[num_rows]`` where a simulator kept them aside, else None. For evaluation only."""
        self.schema.require_task(task)
        if self._truth is None or task not in self._truth.names:
            return None
        return self._truth.column(task)

    def vocabulary(self, name: str) -> pa.ChunkedArray:
        """Raw values ``[size]`` of a vocabulary by id; id 0, out of vocabulary, is null. Raises ValueError."""
        self.schema.vocabulary_size(name)
        return pq.read_table(self.path / fmt.VOCABULARIES / f"{name}.parquet").column("value")

    def users(self) -> pa.Table:
        """``user`` (raw id), ``event_start``, ``event_count``; row = ``Batch.user_id``."""
        with pa.memory_map(str(self.path / fmt.USERS)) as source:
            return pa.ipc.open_file(source).read_all()

    def events(self, places: NDArray[np.int64], counts: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Events ``[places[i], places[i] + counts[i])`` of the event table for every ``i``, end to end.

        Args:
            places: ``[U]`` such as ``event_start`` of :meth:`users`. counts: ``[U]`` how many of each.

        Returns:
            ``{"item": [E], "action": [E], "time": [E] ms UTC, ...}``.

        Raises:
            DataError: if the dataset has no events.
        """
        if self._events is None:
            raise DataError(
                "the dataset has no events", where=str(self.path), fix="import the log again with `actions`"
            )
        return self._events.take_ranges(places, counts, self._events.names)

    def verify(self) -> None:
        """Read and hash every file. Raises IntegrityError naming the first that is damaged, missing or unknown."""
        for name, entry in self.manifest.files.items():
            fmt.check_hash(self.path / name, entry)

    def _entry(self, name: str) -> fmt.FileEntry:
        if name not in self.manifest.files:
            what = f"the manifest does not name {name}"
            raise IntegrityError(what, where=str(self.path / fmt.MANIFEST), fix="import the log again")
        return self.manifest.files[name]


def _tensor(column: NDArray[Any], dtype: Any) -> Tensor:
    return torch.from_numpy(column.astype(dtype, copy=False))
