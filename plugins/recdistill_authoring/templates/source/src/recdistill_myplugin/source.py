"""The source itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import recdistill_core as rd
from numpy.typing import NDArray
from recdistill_core.interfaces import HistoryWindow
from recdistill_parquet.dataset import ParquetSource

from recdistill_myplugin import MyPluginConfig


class MyPluginSource:
    """The first ``rows`` rows of a dataset, in time order; see :class:`recdistill_core.interfaces.SampleSource`.

    Args:
        config: holds ``path`` and ``rows``.

    Attributes:
        schema: features, vocabularies and tasks. num_rows: number of rows.
        snapshot_id: names the rows; another number of rows is another snapshot.
    """

    def __init__(self, config: MyPluginConfig) -> None:
        self.whole = ParquetSource(Path(config.path))
        self.schema = self.whole.schema
        self.num_rows = min(config.rows, self.whole.num_rows)
        self.snapshot_id = f"{self.whole.snapshot_id}-{self.num_rows}"

    def row_at(self, time_ms: int) -> int:
        """Position of the first row at or after a time (ms UTC); ``num_rows`` where there is none."""
        return min(self.whole.row_at(time_ms), self.num_rows)

    def column(self, name: str) -> NDArray[Any]:
        """One whole column ``[num_rows]``: ``example_id``, ``user_id``, ``event_time``, ``label_<task>``, ..."""
        return self.whole.column(name)[: self.num_rows]

    def batch(self, rows: NDArray[np.int64], history: HistoryWindow | None = None) -> rd.Batch:
        """The impressions at ``rows [N]`` in that order, with their histories where ``history`` asks for them.

        Raises:
            IndexError: if a row lies outside ``[0, num_rows)``.
        """
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.num_rows:
            raise IndexError(f"rows reach from {rows.min()} to {rows.max()}; there are rows 0 to {self.num_rows - 1}")
        return self.whole.batch(rows, history)

    def truth(self, task: str) -> NDArray[np.float64] | None:
        """True probabilities ``[num_rows]`` where a simulator kept them aside, else None. For evaluation only."""
        found = self.whole.truth(task)
        return None if found is None else found[: self.num_rows]
