"""Which examples a teacher has been updated on; without it no capture can be shown to be free of leaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import IntegrityError
from recdistill_core.interfaces import SampleSource


class TrainedExamples:
    """Ids of the examples a teacher has been updated on; 8 bytes each, saved beside its weights."""

    def __init__(self, ids: NDArray[np.int64] | None = None) -> None:
        self._sorted = np.unique(ids) if ids is not None else np.empty(0, np.int64)
        self._new: list[NDArray[np.int64]] = []

    def add(self, ids: NDArray[np.int64]) -> None:
        """Note that the teacher has been updated on ``ids [N]``."""
        self._new.append(np.array(ids, dtype=np.int64))

    def ids(self) -> NDArray[np.int64]:
        """``[M]`` ascending."""
        if self._new:
            self._sorted = np.unique(np.concatenate([self._sorted, *self._new]))
            self._new = []
        return self._sorted

    def known(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """``[N]`` True where the example has been trained on."""
        have = self.ids()
        place = np.minimum(np.searchsorted(have, ids), max(len(have) - 1, 0))
        return have[place] == ids if len(have) else np.zeros(len(ids), np.bool_)

    def reached(self, source: SampleSource, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a row's label can have reached a teacher that was trained on these examples.

        It has where the row was trained on, or a later row of its user was, whose history holds the label as an event.

        Args:
            source: the dataset of these examples. rows: ``[R]`` row positions.

        Returns:
            ``[R]`` bool.
        """
        ids, times = source.column("example_id"), source.column("event_time")
        trained = self.known(ids)
        users, place = np.unique(source.column("user_id"), return_inverse=True)
        newest = np.full(users.size, np.iinfo(np.int64).min)
        np.maximum.at(newest, place[trained], times[trained])
        return trained[rows] | (times[rows] < newest[place[rows]])

    def until(self, source: SampleSource) -> int | None:
        """Time of the newest of these examples in ``source``, ms since the epoch, UTC; None where there is none."""
        times = source.column("event_time")[self.known(source.column("example_id"))]
        return int(times.max()) if times.size else None

    def save(self, path: Path) -> None:
        """Write a ``.npy`` file."""
        np.save(path, self.ids(), allow_pickle=False)

    @classmethod
    def load(cls, path: Path) -> TrainedExamples:
        """Read a ``.npy`` file. Raises IntegrityError where it is absent, damaged or holds something else."""
        try:
            with path.open("rb") as stream:
                ids = np.lib.format.read_array(stream, allow_pickle=False)
            if ids.ndim != 1 or ids.dtype != np.int64:
                raise ValueError("not a list of int64 ids")
        except (OSError, ValueError) as error:
            raise IntegrityError(
                f"the list of examples this teacher was trained on cannot be read: {error}",
                where=str(path),
                fix="train the teacher again: without the list no capture can be shown to be free of leaks",
            ) from error
        return cls(ids)
