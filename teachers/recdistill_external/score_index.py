"""Scores sorted by example id, on disk: files of any length in any order, in bounded memory."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recdistill_core.errors import DataError
from recdistill_external.values import Tally

SHOWN = 3
ABSENT, BROKEN = 1e300, -1e300


class ScoreIndex:
    """Logits by example id, memory-mapped in a temporary folder that goes with this object.

    Args:
        tasks: the tasks.

    Attributes:
        folder: for whatever is needed while the index is written.
        example_id: ``[R]`` int64, ascending, each once. logits: ``{task: [R]}`` float32, NaN for none.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="recdistill-scores-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.tasks = tuple(tasks)
        self.example_id: NDArray[np.int64] = np.zeros(0, np.int64)
        self.logits: dict[str, NDArray[np.float32]] = {}

    def open(self) -> None:
        """Map what was written; whatever else is in the folder goes."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix != ".bin":
                path.unlink()
        self.example_id = _mapped(self.folder / "id.bin", np.int64)
        self.logits = {task: _mapped(self.folder / f"{n}.bin", np.float32) for n, task in enumerate(self.tasks)}

    def look_up(self, example_id: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """Logits ``{task: [N]}`` of ``example_id [N]``; NaN where there is none."""
        place = np.minimum(np.searchsorted(self.example_id, example_id), max(self.example_id.size - 1, 0))
        if not self.example_id.size:
            return {task: np.full(example_id.shape, np.nan, np.float32) for task in self.tasks}
        found = self.example_id[place] == example_id
        return {task: np.where(found, logit[place], np.float32("nan")) for task, logit in self.logits.items()}


@dataclass
class Writer:
    """Writes an index from rows sorted by example id.

    Attributes:
        index: to be written. tally: checks the scores.
        repeated: rows that repeat the scores of their example; contradicting: rows with other scores, by example.
        contradicting_rows: how many such rows.
    """

    index: ScoreIndex
    tally: Tally
    repeated: int = 0
    contradicting_rows: int = 0
    contradicting: list[tuple[int, list[float], list[float]]] = field(default_factory=list)
    _last: tuple[int, NDArray[np.float64]] | None = None

    def write(self, batches: Any) -> None:
        """Write ``id, s0, s1, ...`` of record batches; one row is kept for each example."""
        names = ["id", *range(len(self.index.tasks))]
        streams = [(self.index.folder / f"{name}.bin").open("wb") for name in names]
        try:
            for batch in batches:
                if batch.num_rows:
                    for stream, column in zip(streams, self._columns(batch), strict=True):
                        stream.write(np.ascontiguousarray(column).data)
        finally:
            for stream in streams:
                stream.close()

    def settle(self, where: str) -> None:
        """Raise DataError for examples with two different scores, and for invalid ones."""
        if self.contradicting_rows:
            shown = "; ".join(f"example {ex}: {_list(a)} and {_list(b)}" for ex, a, b in self.contradicting)
            raise DataError(
                f"{self.contradicting_rows:,} rows give an example another score than a row before: {shown}",
                where=where,
                fix="keep one row for each example; name more columns in key where it does not tell them apart",
            )
        self.tally.settle(where)

    def _columns(self, batch: pa.RecordBatch) -> list[NDArray[Any]]:
        """``id`` and the logits of each task, repeats left out."""
        ids = batch.column(0).to_numpy().astype(np.int64)
        columns = [batch.column(n + 1) for n in range(len(self.index.tasks))]
        absent = [column.is_null().to_numpy(zero_copy_only=False) for column in columns]
        scores = [column.fill_null(0.0).to_numpy(zero_copy_only=False).astype(np.float64) for column in columns]
        # two absent scores are equal, and so are two that are no number
        plain = [np.where(np.isnan(score), BROKEN, score) for score in scores]
        values = np.stack([np.where(gone, ABSENT, score) for gone, score in zip(absent, plain, strict=True)], axis=1)
        keep = self._first_of_each(ids, values)
        logits = [
            self.tally.logits(task, score[keep], ids[keep], gone[keep])
            for task, score, gone in zip(self.index.tasks, scores, absent, strict=True)
        ]
        return [ids[keep], *logits]

    def _first_of_each(self, ids: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """``[N]``: rows whose id is new; the others are compared with the row before them."""
        before = self._last or (int(ids[0]) - 1, values[0])
        earlier_ids = np.concatenate(([before[0]], ids[:-1]))
        earlier = np.concatenate((before[1][None], values[:-1]))
        again = ids == earlier_ids
        other = again & (values != earlier).any(axis=1)
        self.repeated += int((again & ~other).sum())
        self.contradicting_rows += int(other.sum())
        for row in np.flatnonzero(other)[: SHOWN - len(self.contradicting)]:
            self.contradicting.append((int(ids[row]), earlier[row].tolist(), values[row].tolist()))
        self._last = (int(ids[-1]), values[-1])
        new: NDArray[np.bool_] = ~again
        return new


def _list(values: Sequence[float]) -> str:
    words: Mapping[float, str] = {ABSENT: "none", BROKEN: "NaN"}
    return ", ".join(words.get(value, f"{value:g}") for value in values)


def _mapped(path: Path, kind: Any) -> NDArray[Any]:
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.zeros(0, kind)
