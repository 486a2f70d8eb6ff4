"""The store itself: versions, commits and labels as three tables of one SQLite file."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recdistill_core import TeacherSignal
from recdistill_core.errors import DataError, IntegrityError, LeakError, suggest
from recdistill_core.interfaces import CaptureMode, LabelVersion, LabelWriter
from torch import Tensor

from recdistill_myplugin import MyPluginConfig

TABLES = """
CREATE TABLE IF NOT EXISTS versions (version TEXT PRIMARY KEY, mode TEXT, tasks TEXT, view TEXT, facts TEXT);
CREATE TABLE IF NOT EXISTS commits (number INTEGER PRIMARY KEY, version TEXT, rows INTEGER, sha256 TEXT);
CREATE TABLE IF NOT EXISTS labels (
    version TEXT, example_id INTEGER, step INTEGER, scored_at INTEGER, logits BLOB, PRIMARY KEY (version, example_id)
) WITHOUT ROWID;
"""
#: (example_id, step, scored_at, float32 logits in the order of the tasks)
Row = tuple[int, int, int, bytes]


class MyPluginStore:
    """One raw logit per (example, task, teacher version); see :class:`recdistill_core.interfaces.LogitStore`.

    Processes may write and read at once. A read loads the labels of its version into memory.

    Args:
        config: holds ``path`` and ``timeout``.
    """

    def __init__(self, config: MyPluginConfig) -> None:
        self.file, self.timeout = Path(config.path) / "labels.sqlite", config.timeout

    def writer(
        self, version: str, *, tasks: Sequence[str], mode: CaptureMode, view: str, facts: Mapping[str, Any]
    ) -> LabelWriter:
        """A writer for one version.

        Raises:
            LeakError: if the version is there with another mode. IntegrityError: with other tasks or another view.
        """
        entry = LabelVersion(version, CaptureMode(mode), tuple(tasks), view, 0, json.loads(json.dumps(dict(facts))))
        return _Writer(self, entry)

    def versions(self) -> tuple[LabelVersion, ...]:
        """Committed versions, oldest first."""
        if not self.file.exists():
            return ()
        with self.open() as database:
            found = database.execute("SELECT version, mode, tasks, view, facts FROM versions ORDER BY rowid").fetchall()
            rows = dict(database.execute("SELECT version, SUM(rows) FROM commits GROUP BY version"))
        return tuple(
            LabelVersion(version, CaptureMode(mode), tuple(json.loads(tasks)), view, rows[version], json.loads(facts))
            for version, mode, tasks, view, facts in found
        )

    def read(self, version: str, example_id: NDArray[np.int64]) -> TeacherSignal:
        """Labels of ``example_id [M]`` in that order: float32 logits as they were written, 0 where there is none.

        Raises:
            DataError: if the store has no such version. IntegrityError: if the file is damaged.
        """
        entries = {entry.version: entry for entry in self.versions()}
        if version not in entries:
            raise DataError(
                f"the label store has no version {version!r}{suggest(version, entries)}",
                where=f"{self.file}; versions: {', '.join(entries) or 'none'}",
                fix="name a version that is there, or capture the teacher's labels first",
            )
        tasks = entries[version].tasks
        with self.open() as database:
            query = "SELECT example_id, scored_at, logits FROM labels WHERE version = ? ORDER BY example_id"
            rows = database.execute(query, (version,)).fetchall()
        known = np.array([row[0] for row in rows], np.int64)
        scored_at = np.array([row[1] for row in rows], np.int64)
        logits = np.frombuffer(b"".join(row[2] for row in rows), np.float32).reshape(len(rows), len(tasks))
        place = np.minimum(np.searchsorted(known, example_id), len(known) - 1)
        valid = torch.from_numpy(known[place] == example_id)
        picked = torch.where(valid[:, None], torch.from_numpy(logits[place]), 0.0)
        return TeacherSignal(
            logits={task: picked[:, column].contiguous() for column, task in enumerate(tasks)},
            valid={task: valid.clone() for task in tasks},
            version=version,
            scored_at=torch.where(valid, torch.from_numpy(scored_at[place]), 0),
        )

    def snapshot_id(self) -> str:
        """32 hex digits of what is committed now."""
        commits: list[Any] = []
        if self.file.exists():
            with self.open() as database:
                commits = database.execute("SELECT version, rows, sha256 FROM commits ORDER BY number").fetchall()
        return hashlib.sha256(json.dumps(commits).encode()).hexdigest()[:32]

    @contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """A connection whose work is one transaction: committed at the end, or undone where an exception leaves it."""
        try:
            with closing(sqlite3.connect(self.file, timeout=self.timeout)) as database, database:
                yield database
        except sqlite3.Error as error:
            raise IntegrityError(
                f"the label store cannot be used: {error}", where=str(self.file), fix="restore it from a backup"
            ) from error

    def known(self, version: str) -> dict[int, bytes]:
        """``{example id: its logits}`` of the committed labels of ``version``."""
        if not self.file.exists():
            return {}
        with self.open() as database:
            return dict(database.execute("SELECT example_id, logits FROM labels WHERE version = ?", (version,)))

    def require_same(self, entry: LabelVersion) -> None:
        """Refuse labels of a version that is there and was captured otherwise."""
        for old in self.versions():
            if old.version == entry.version and old.mode != entry.mode:
                raise LeakError(f"version {old.version!r} holds {old.mode.value} labels", where=str(self.file))
            if old.version == entry.version and (old.tasks, old.view) != (entry.tasks, entry.view):
                raise IntegrityError(f"version {old.version!r} has other tasks or another view", where=str(self.file))


class _Writer:
    """Holds what was appended in memory until :meth:`commit`."""

    def __init__(self, store: MyPluginStore, entry: LabelVersion) -> None:
        self.store, self.entry = store, entry
        store.require_same(entry)
        self.taken = store.known(entry.version)
        self.pending: list[Row] = []

    def append(self, example_id: Tensor, logits: Mapping[str, Tensor], *, step: int, scored_at: int) -> None:
        """Add raw logits ``{task: [N]}`` of ``example_id [N]``; all of them or none. An equal second label is dropped.

        Raises:
            LeakError: if an example has another label of this version already. DataError: for other tasks, or logits
                that are not finite.
        """
        if set(logits) != set(self.entry.tasks):
            raise DataError(f"give logits of exactly these tasks: {', '.join(self.entry.tasks)}", where=self.where)
        values = torch.stack([logits[task].detach().cpu().float() for task in self.entry.tasks], dim=1)
        if not bool(torch.isfinite(values).all()):
            raise DataError("a logit is NaN or infinite", where=self.where, fix="lower the teacher's learning rate")
        fresh: dict[int, bytes] = {}
        for key, row in zip(example_id.tolist(), values.numpy(), strict=True):
            given = row.tobytes()
            before = fresh.get(key, self.taken.get(key))
            if before is None:
                fresh[key] = given
            elif before != given:
                raise LeakError(
                    f"example {key} already has another label of version {self.entry.version!r}",
                    where=f"{self.where}, step {step}",
                    fix="score every example once, before the teacher trains on it",
                )
        self.taken.update(fresh)
        self.pending += [(key, step, scored_at, given) for key, given in fresh.items()]

    def commit(self) -> LabelVersion:
        """Make everything appended visible at once.

        Raises:
            LeakError: if another writer has meanwhile labelled one of the examples; nothing becomes visible.
            DataError: if the version would have no label.
        """
        self.store.file.parent.mkdir(parents=True, exist_ok=True)
        self.store.require_same(self.entry)
        if not self.pending and self.entry.version not in {old.version for old in self.store.versions()}:
            raise DataError("a version without any label cannot be committed", where=self.where)
        entry, digest = self.entry, hashlib.sha256(b"".join(b"%d %b" % (row[0], row[3]) for row in self.pending))
        plain = (entry.version, entry.mode.value, json.dumps(entry.tasks), entry.view, json.dumps(dict(entry.facts)))
        with self.store.open() as database:
            database.executescript(TABLES)
            try:
                database.execute("INSERT OR IGNORE INTO versions VALUES (?, ?, ?, ?, ?)", plain)
                labels = ((entry.version, *row) for row in self.pending)
                database.executemany("INSERT INTO labels VALUES (?, ?, ?, ?, ?)", labels)
            except sqlite3.IntegrityError as error:
                raise LeakError("another writer has labelled one of the examples", where=self.where) from error
            facts = (entry.version, len(self.pending), digest.hexdigest())
            if self.pending:
                database.execute("INSERT INTO commits (version, rows, sha256) VALUES (?, ?, ?)", facts)
        self.pending = []
        return next(replace(old) for old in self.store.versions() if old.version == entry.version)

    def abort(self) -> None:
        """Forget everything appended since the last commit."""
        for row in self.pending:
            self.taken.pop(row[0], None)
        self.pending = []

    @property
    def where(self) -> str:
        """The store and the version, for messages."""
        return f"{self.store.file}, version {self.entry.version!r}"
