"""Stores that break their contract: the shipped one with one fault each."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from wrong import Wrong, wrong

from recdistill_core.batch import TeacherSignal
from recdistill_core.errors import LeakError
from recdistill_core.labels import LabelVersion
from recdistill_parquet.labels import ParquetLogitStore

SHARED = tempfile.mkdtemp(prefix="recdistill-wrong-")
atexit.register(shutil.rmtree, SHARED, True)


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


def logits(signal: TeacherSignal, act: Callable[[Any], Any]) -> TeacherSignal:
    return replace(signal, logits={task: act(logit) for task, logit in signal.logits.items()})


def valid(signal: TeacherSignal, act: Callable[[Any], Any]) -> TeacherSignal:
    return replace(signal, valid={task: act(mask) for task, mask in signal.valid.items()})


class Halved(Changed):
    """Keeps float16."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return logits(signal, lambda logit: logit.half().float())


class Doubled(Changed):
    """Gives float64."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return logits(signal, lambda logit: logit.double())


class Unsigned(Changed):
    """Loses the sign of zero, as a detour through text may."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return logits(signal, lambda logit: logit + 0.0)


class Sorted(Store):
    """Gives labels in the order of their ids."""

    def read(self, version: str, example_id: Any) -> TeacherSignal:
        return super().read(version, np.sort(example_id))


class Column(Changed):
    """Gives a column."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return logits(signal, lambda logit: logit[:, None])


class OneTask(Changed):
    """Forgets a task."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return replace(signal, logits={"click": signal.logits["click"]})


class HalfWriter(Writer):
    """Takes the first append of each two."""

    def append(self, example_id: Any, logits: Any, *, step: int, scored_at: int) -> None:
        if step == 0:
            super().append(example_id, logits, step=step, scored_at=scored_at)


class Half(Store):
    """Forgets half of what it is given."""

    writes = HalfWriter


class AllValid(Changed):
    """Has a label for everything."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return valid(signal, torch.ones_like)


class NoneValid(Changed):
    """Has a label for nothing."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return valid(signal, torch.zeros_like)


class Counting(Changed):
    """Gives a mask of numbers."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return valid(signal, lambda mask: mask.long())


class Lenient(Store):
    """Answers for the newest version where it does not know one."""

    def read(self, version: str, example_id: Any) -> TeacherSignal:
        known = [entry.version for entry in self.versions()]
        return super().read(version if version in known else known[-1], example_id)


class Careless(Store):
    """Refuses with whatever comes."""

    def read(self, version: str, example_id: Any) -> TeacherSignal:
        if version not in [entry.version for entry in self.versions()]:
            raise KeyError(version)
        return super().read(version, example_id)


class Newest(Store):
    """Answers for the newest version, under the name asked for."""

    def read(self, version: str, example_id: Any) -> TeacherSignal:
        found = super().read(version, example_id)
        newest = super().read(self.versions()[-1].version, example_id)
        return replace(newest, version=found.version)


class Nameless(Changed):
    """Does not say which version answers."""

    def change(self, signal: TeacherSignal) -> TeacherSignal:
        return replace(signal, version="")


class EagerWriter(Writer):
    """Commits at once."""

    def append(self, example_id: Any, logits: Any, *, step: int, scored_at: int) -> None:
        super().append(example_id, logits, step=step, scored_at=scored_at)
        self.inner.commit()


class Eager(Store):
    """Has no notion of a commit."""

    writes = EagerWriter


class LateWriter(EagerWriter):
    """Commits at once, but for the first append of a version."""

    def append(self, example_id: Any, logits: Any, *, step: int, scored_at: int) -> None:
        if self.store.versions():
            super().append(example_id, logits, step=step, scored_at=scored_at)
        else:
            Writer.append(self, example_id, logits, step=step, scored_at=scored_at)


class Late(Store):
    """Has no notion of a commit in a version that is there."""

    writes = LateWriter


class StubbornWriter(Writer):
    """Commits when it is told to forget."""

    def abort(self) -> None:
        self.inner.commit()


class Stubborn(Store):
    """Forgets nothing."""

    writes = StubbornWriter


class NotedAborts(Store):
    """Counts writers in its snapshot."""

    def writer(self, version: str, **more: Any) -> Any:
        note = self.path / "noted"
        made = super().writer(version, **more)
        note.write_text(f"{note.read_text() if note.exists() else ''}x")
        return made

    def snapshot_id(self) -> str:
        note = self.path / "noted"
        return super().snapshot_id() + (note.read_text() if note.exists() else "")


class JournalWriter(Writer):
    """Notes what is to come, and forgets to forget it."""

    def append(self, example_id: Any, logits: Any, *, step: int, scored_at: int) -> None:
        super().append(example_id, logits, step=step, scored_at=scored_at)
        plain = {"ids": example_id.tolist(), "logits": {task: logit.tolist() for task, logit in logits.items()}}
        (self.store.path / "journal.json").write_text(json.dumps(plain))

    def commit(self) -> LabelVersion:
        found = super().commit()
        (self.store.path / "journal.json").unlink()
        return found

    def abort(self) -> None:
        super().abort()
        (self.store.path / "journal.json").unlink()


class Journal(Store):
    """Takes over what a crashed writer noted."""

    writes = JournalWriter

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        journal = path / "journal.json"
        if journal.exists():
            plain, entry = json.loads(journal.read_text()), self.versions()[0]
            about = {"tasks": entry.tasks, "mode": entry.mode, "view": entry.view, "facts": entry.facts}
            writer = ParquetLogitStore.writer(self, entry.version, **about)
            writer.append(
                torch.tensor(plain["ids"]),
                {task: torch.tensor(logit) for task, logit in plain["logits"].items()},
                step=0,
                scored_at=0,
            )
            writer.commit()


class QuietJournal(Journal):
    """The same, and its snapshot does not show it."""

    def snapshot_id(self) -> str:
        return "0"


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
        self.known = inner._committed.ids().tolist()
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


class Constant(Store):
    """Always in the same state."""

    def snapshot_id(self) -> str:
        return "0"


class Opening(Store):
    """Another snapshot for every opening."""

    def snapshot_id(self) -> str:
        return f"{super().snapshot_id()}-{id(self)}"


class Reversed(Store):
    """Lists the newest version first."""

    def versions(self) -> tuple[LabelVersion, ...]:
        return super().versions()[::-1]


class Prepared(Store):
    """Is never empty."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if not path.exists():
            made = self.writer("made", tasks=("click",), mode="external", view="", facts={})
            made.append(torch.tensor([1]), {"click": torch.zeros(1)}, step=0, scored_at=0)
            made.commit()


class Terse(Store):
    """Drops the facts."""

    def versions(self) -> tuple[LabelVersion, ...]:
        return tuple(replace(entry, facts={}) for entry in super().versions())


def example(folder: Path) -> Mapping[str, Any]:
    return {"path": str(folder / "labels")}


def store(check: str, kind: Callable[[Path], Any], fault: str, place: Any = example) -> Wrong:
    return wrong(check, "store", lambda config, context: kind(Path(config.path)), fault, config=Place, example=place)


PUT = "what_is_put_is_got_back"
MASK = "examples_without_a_label_are_not_valid"
MISS = "another_version_is_a_miss"
SECOND, EQUAL = "another_second_label_is_refused", "an_equal_second_label_is_dropped"
WRONG = [
    store(
        "every_example_is_a_store_of_its_own",
        Store,
        "shares its labels with a store made from the example in another folder: make `example` a function",
        {"path": f"{SHARED}/labels"},
    ),
    store(PUT, Halved, "'wrong' gives 2.9765625 for example 231, task 'click', in shuffled order; 2.976"),
    store(PUT, Unsigned, "in shuffled order; -0.0 was put"),
    store(PUT, Doubled, "gives torch.float64 logits, not torch.float32"),
    store(PUT, Column, "gives other shapes than one entry per example in shuffled order"),
    store(PUT, Sorted, "in shuffled order; "),
    store(PUT, OneTask, "gives logits of ['click'], not of ['click', 'like']"),
    store(PUT, Half, "has lost 43 of 85 labels in shuffled order"),
    store(MASK, AllValid, "invents a label of example "),
    store(MASK, NoneValid, "hides the label of example "),
    store(MASK, Counting, "gives a mask of torch.int64, not torch.bool"),
    store(MISS, Lenient, "does not refuse a teacher version that it does not have"),
    store(MISS, Careless, "does not refuse a teacher version that it does not have: it raises KeyError, not DataError"),
    store(MISS, Newest, "mixes the labels of two versions: version 'v1' is not as it was put"),
    store(MISS, Nameless, "answers for version '', 'v1' was asked for"),
    store("nothing_is_visible_before_commit", Eager, "shows labels before their commit"),
    store("nothing_is_visible_before_commit", Late, "shows labels before their commit, in a version that was there"),
    store("abort_forgets", Stubborn, "keeps labels that were aborted"),
    store("abort_forgets", NotedAborts, "has another snapshot_id after an abort"),
    store("a_crash_leaves_the_store_as_it_was", Journal, "has another snapshot_id after a writer crashed"),
    store(
        "a_crash_leaves_the_store_as_it_was", QuietJournal, "shows labels of a writer that crashed before its commit"
    ),
    store(SECOND, First, "takes two different labels of one example in one append"),
    store(SECOND, Pending, "takes another second label of an example in one writer"),
    store(SECOND, Committed, "takes another second label of an example that has been committed"),
    store(EQUAL, StrictInOne, "refuses an equal second label in one append; a repeated delivery must do no harm"),
    store(EQUAL, StrictInWriter, "refuses an equal second label to one writer; a repeated delivery must do no harm"),
    store(EQUAL, StrictAfter, "refuses an equal second label after a commit; a repeated delivery must do no harm"),
    store(EQUAL, Tallying, "counts 11 labels of 10 examples that were delivered twice before a commit"),
    store(EQUAL, TallyingAfter, "counts 20 labels of 10 examples that were delivered again after a commit"),
    store("the_snapshot_id_follows_the_commits", Constant, "has the same snapshot_id after another commit"),
    store("the_snapshot_id_follows_the_commits", Opening, "has another snapshot_id when it is opened again"),
    store(
        "the_snapshot_id_follows_the_commits", Eager, "has another snapshot_id after an append that is not committed"
    ),
    store("versions_say_what_was_written", Prepared, "is not empty when it is new"),
    store("versions_say_what_was_written", Reversed, "lists its versions as ['a', 'b'], not oldest first"),
    store("versions_say_what_was_written", Terse, "of version 'b'; it was (<CaptureMode.PREQUENTIAL"),
]
