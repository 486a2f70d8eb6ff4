"""The shipped label store, as a base of stores with one fault each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrong import Wrong, wrong

from recdistill_core.batch import TeacherSignal
from recdistill_core.labels import LabelVersion
from recdistill_parquet.labels import ParquetLogitStore


@dataclass(frozen=True)
class Place:
    """``path`` of the store."""

    path: str


class Writer:
    """Hands everything on."""

    def __init__(self, store: ParquetLogitStore, inner: Any) -> None:
        self.store, self.inner = store, inner

    def append(self, example_id: Any, logits: Any, *, step: int, scored_at: int) -> None:
        self.inner.append(example_id, logits, step=step, scored_at=scored_at)

    def commit(self) -> LabelVersion:
        found: LabelVersion = self.inner.commit()
        return found

    def abort(self) -> None:
        self.inner.abort()


class Store(ParquetLogitStore):
    """Labels in Parquet segments."""

    writes: type[Writer] = Writer

    def writer(self, version: str, **more: Any) -> Any:
        return self.writes(self, super().writer(version, **more))


class Changed(Store):
    """Answers something else than it read."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return signal

    def read(self, version: str, example_id: Any) -> TeacherSignal:
        return self.change(super().read(version, example_id))


def example(folder: Path) -> Mapping[str, Any]:
    return {"path": str(folder / "labels")}


def store(check: str, kind: Callable[[Path], Any], fault: str, place: Any = example) -> Wrong:
    return wrong(check, "store", lambda config, context: kind(Path(config.path)), fault, config=Place, example=place)
