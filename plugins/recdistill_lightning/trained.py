"""Which examples a teacher has been updated on; without it no capture can be shown to be free of leaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recdistill_core.errors import IntegrityError


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
