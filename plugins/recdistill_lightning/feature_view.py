"""A dataset without some of its features: what students read where only their teacher may read these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recdistill_core.batch import Batch
from recdistill_core.errors import DataError
from recdistill_core.interfaces import HistoryWindow, SampleSource

#: Columns of every dataset that are no features, whatever features are called.
OF_ROWS = ("example_id", "request_id", "user_id", "item_id", "event_time")


class FeatureView:
    """A dataset whose schema and batches lack some features; everything else is the dataset's.

    With a teacher that reads the dataset itself this is privileged features distillation (Xu et al. 2020, "Privileged
    Features Distillation at Taobao Recommendations", arXiv 1907.05171): the student learns from logits that know more
    than it will ever be fed. Students need to know nothing of it: they are built with :attr:`schema`.

    Args:
        source: the dataset. without: names of categorical and numeric features to leave out.

    Raises:
        DataError: for a name that is no feature of the dataset.
    """

    def __init__(self, source: SampleSource, without: Iterable[str]) -> None:
        self.source, self.without = source, tuple(without)
        self.schema = source.schema.without(self.without)
        self.snapshot_id, self.num_rows = source.snapshot_id, source.num_rows
        names = [feature.name for feature in source.schema.categorical]
        self._categorical = self._kept(names)
        # a bare name that a row has anyhow, such as user_id, is no feature's
        of_rows = {*OF_ROWS, *source.schema.gives}
        self._refused = {f"feature/{name}" for name in self.without} | ({*self.without} - of_rows)
        self._numeric = self._kept(source.schema.numeric)

    def _kept(self, names: Sequence[str]) -> list[int]:
        return [at for at, name in enumerate(names) if name not in self.without]

    def row_at(self, time_ms: int) -> int:
        """See :meth:`SampleSource.row_at`."""
        return self.source.row_at(time_ms)

    def column(self, name: str) -> NDArray[Any]:
        """See :meth:`SampleSource.column`. Raises DataError for a feature that is left out."""
        if name in self._refused:
            raise DataError(
                f"the feature {name.removeprefix('feature/')!r} is left out of this view of the dataset",
                where="FeatureView.column",
                fix="read it from the dataset itself, where what is made of it is not served",
            )
        return self.source.column(name)

    def batch(self, rows: NDArray[np.int64], history: HistoryWindow | None = None) -> Batch:
        """See :meth:`SampleSource.batch`; ``categorical`` and ``numeric`` have the columns of :attr:`schema`."""
        whole = self.source.batch(rows, history)
        categorical, numeric = _columns(whole.categorical, self._categorical), _columns(whole.numeric, self._numeric)
        return replace(whole, categorical=categorical, numeric=numeric)

    def truth(self, task: str) -> NDArray[np.float64] | None:
        """See :meth:`SampleSource.truth`."""
        return self.source.truth(task)


def _columns(table: Tensor, kept: list[int]) -> Tensor:
    """``[N, F]`` -> ``[N, len(kept)]``; the tensor itself where all are kept."""
    return table if len(kept) == table.shape[1] else table[:, kept]
