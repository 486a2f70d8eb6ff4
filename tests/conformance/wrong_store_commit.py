"""Stores that break their contract in when labels are seen: commits, aborts, crashes, snapshots and versions."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from store_cases import Store, Writer, store

from recdistill_core.labels import LabelVersion
from recdistill_parquet.labels import ParquetLogitStore

SHARED = tempfile.mkdtemp(prefix="recdistill-wrong-")
atexit.register(shutil.rmtree, SHARED, True)


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


WRONG = [
    store(
        "every_example_is_a_store_of_its_own",
        Store,
        "shares its labels with a store made from the example in another folder: make `example` a function",
        {"path": f"{SHARED}/labels"},
    ),
    store("nothing_is_visible_before_commit", Eager, "shows labels before their commit"),
    store("nothing_is_visible_before_commit", Late, "shows labels before their commit, in a version that was there"),
    store("abort_forgets", Stubborn, "keeps labels that were aborted"),
    store("abort_forgets", NotedAborts, "has another snapshot_id after an abort"),
    store("a_crash_leaves_the_store_as_it_was", Journal, "has another snapshot_id after a writer crashed"),
    store(
        "a_crash_leaves_the_store_as_it_was", QuietJournal, "shows labels of a writer that crashed before its commit"
    ),
    store("the_snapshot_id_follows_the_commits", Constant, "has the same snapshot_id after another commit"),
    store("the_snapshot_id_follows_the_commits", Opening, "has another snapshot_id when it is opened again"),
    store(
        "the_snapshot_id_follows_the_commits", Eager, "has another snapshot_id after an append that is not committed"
    ),
    store("versions_say_what_was_written", Prepared, "is not empty when it is new"),
    store("versions_say_what_was_written", Reversed, "lists its versions as ['a', 'b'], not oldest first"),
    store("versions_say_what_was_written", Terse, "of version 'b'; it was (<CaptureMode.PREQUENTIAL"),
]
