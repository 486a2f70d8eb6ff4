"""Stores that break their contract where an example is given a second label."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from store_cases import Store, Writer, store

from recdistill_core.errors import LeakError
from recdistill_core.labels import LabelVersion
from recdistill_parquet.labels import ParquetLogitStore


class FirstWriter(Writer):
    """Keeps the first label and says nothing of the second."""

    def append(self, example_id: Any, logits: Any, *, step: int, scored_at: int) -> None:
        fresh = [row for row, number in enumerate(example_id.tolist()) if number not in example_id.tolist()[:row]]
        super().append(
            example_id[fresh], {task: x[fresh] for task, x in logits.items()}, step=step, scored_at=scored_at
        )


class First(Store):
    """Drops doubles within one append."""

    writes = FirstWriter


class Forgiving(Writer):
    """Says nothing of an example that is pending or committed already."""

    def append(self, example_id: Any, logits: Any, *, step: int, scored_at: int) -> None:
        self.pending = getattr(self, "pending", set())
        if len(set(example_id.tolist())) == len(example_id) and self.pending & set(example_id.tolist()):
            return
        super().append(example_id, logits, step=step, scored_at=scored_at)
        self.pending |= set(example_id.tolist())


class Pending(Store):
    """Drops a second label of one writer."""

    writes = Forgiving


class CommittedWriter(Writer):
    """Says nothing of an example that has been committed, and raises what comes for others."""

    def append(self, example_id: Any, logits: Any, *, step: int, scored_at: int) -> None:
        if self.store.versions() and not self.inner._pending:
            return
        super().append(example_id, logits, step=step, scored_at=scored_at)


class Committed(Store):
    """Drops a second label of a later writer."""

    writes = CommittedWriter


class StrictWriter(Writer):
    """Refuses what it has seen."""

    where = "one append"

    def __init__(self, store: ParquetLogitStore, inner: Any) -> None:
        super().__init__(store, inner)
        committed = inner._known.committed
        self.known = committed._ids[: len(committed)].tolist()
        self.pending: list[int] = []

    def append(self, example_id: Any, logits: Any, *, step: int, scored_at: int) -> None:
        ids = example_id.tolist()
        seen = {"one append": len(set(ids)) < len(ids), "writer": set(ids) & set(self.pending)}
        if seen.get(self.where, set(ids) & set(self.known)):
            raise LeakError("seen before")
        super().append(example_id, logits, step=step, scored_at=scored_at)
        self.pending += ids


class StrictInOneWriter(StrictWriter):
    """Refuses doubles of one append."""


class StrictInWriterWriter(StrictWriter):
    """Refuses doubles of one writer."""

    where = "writer"


class StrictAfterWriter(StrictWriter):
    """Refuses doubles of what is committed."""

    where = "committed"


class StrictInOne(Store):
    """See its writer."""

    writes = StrictInOneWriter


class StrictInWriter(Store):
    """See its writer."""

    writes = StrictInWriterWriter


class StrictAfter(Store):
    """See its writer."""

    writes = StrictAfterWriter


class TallyWriter(Writer):
    """Counts what was delivered to it in one append once too often."""

    doubles = 0

    def append(self, example_id: Any, logits: Any, *, step: int, scored_at: int) -> None:
        self.doubles += len(example_id) - len(set(example_id.tolist()))
        super().append(example_id, logits, step=step, scored_at=scored_at)

    def commit(self) -> LabelVersion:
        found = super().commit()
        return replace(found, count=found.count + self.doubles)


class Tallying(Store):
    """See its writer."""

    writes = TallyWriter


class TallyAfterWriter(TallyWriter):
    """Counts what was delivered after a commit."""

    def append(self, example_id: Any, logits: Any, *, step: int, scored_at: int) -> None:
        Writer.append(self, example_id, logits, step=step, scored_at=scored_at)
        self.doubles += len(example_id) if self.store.versions() else 0


class TallyingAfter(Store):
    """See its writer."""

    writes = TallyAfterWriter


SECOND, EQUAL = "another_second_label_is_refused", "an_equal_second_label_is_dropped"
WRONG = [
    store(SECOND, First, "takes two different labels of one example in one append"),
    store(SECOND, Pending, "takes another second label of an example in one writer"),
    store(SECOND, Committed, "takes another second label of an example that has been committed"),
    store(EQUAL, StrictInOne, "refuses an equal second label in one append; a repeated delivery must do no harm"),
    store(EQUAL, StrictInWriter, "refuses an equal second label to one writer; a repeated delivery must do no harm"),
    store(EQUAL, StrictAfter, "refuses an equal second label after a commit; a repeated delivery must do no harm"),
    store(EQUAL, Tallying, "counts 11 labels of 10 examples that were delivered twice before a commit"),
    store(EQUAL, TallyingAfter, "counts 20 labels of 10 examples that were delivered again after a commit"),
]
