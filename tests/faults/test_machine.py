"""A label store against a plain dictionary: whatever is done to it in whatever order, committed labels show once."""

from __future__ import annotations

import os
import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crashing import MOMENTS, Killer, in_child
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from recdistill_core.errors import LeakError, UsageError
from recdistill_core.label_choice import unlabelled
from recdistill_core.labels import CaptureMode, LabelChoice
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_findings import Severity
from recdistill_parquet.labels_writer import ParquetLabelWriter

ALL = os.environ.get("RECDISTILL_KILLS") == "all"
IDS = np.arange(24)
#: The teacher that fills gaps; nobody revokes its labels.
FILL = "fill"
VERSIONS = st.sampled_from(["a", "b"])
KEYS = st.lists(st.integers(0, 23), min_size=1, max_size=8)
Labels = dict[int, tuple[float, int]]


def usual(key: int) -> float:
    """The label that an example gets, if nobody says another."""
    return key / 4


class Machine(RuleBasedStateMachine):
    """``committed[version][id] = (logit, time)``; ``pending`` is what the version's writer was given since."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="recdistill-machine-"))
        self.path = self.folder / "store"
        self.committed: dict[str, Labels] = {}
        self.revoked: dict[str, int] = {}
        self.pending: dict[str, Labels] = {}
        self.known: dict[str, set[int]] = {}  # what the version's writer had seen committed when it last looked
        self.writers: dict[str, ParquetLabelWriter] = {}
        self.pins: dict[str, dict[str, dict[int, float]]] = {}
        self.time = 0

    @initialize(rows=st.integers(1, 6))
    def start(self, rows: int) -> None:
        self.rows = rows
        self.store = ParquetLogitStore(self.path, rows)

    def visible(self) -> dict[str, dict[int, float]]:
        """What the model says can be seen."""
        found = {}
        for version, labels in self.committed.items():
            until = self.revoked.get(version, self.time + 1)
            found[version] = {key: logit for key, (logit, at) in labels.items() if at < until}
        return found

    def shown(self, store: ParquetLogitStore) -> dict[str, dict[int, float]]:
        """What the store shows."""
        found = {}
        for entry in store.versions():
            signal = store.read(entry.version, IDS)
            valid = signal.valid["click"].numpy()
            logits = signal.logits["click"].numpy()[valid].tolist()
            found[entry.version] = dict(zip(IDS[valid].tolist(), logits, strict=True))
        return found

    def counts(self, store: ParquetLogitStore) -> dict[str, int]:
        """Committed labels, those included that are revoked."""
        return {entry.version: entry.count for entry in store.versions()}

    def writer(self, version: str) -> ParquetLabelWriter:
        if version not in self.writers:
            self.writers[version] = self.store.writer(
                version, tasks=["click"], mode=CaptureMode.PREQUENTIAL, view="v", facts={}
            )
            self.pending[version] = {}
            self.known[version] = set(self.committed.get(version, {}))
        return self.writers[version]

    def append(self, version: str, labels: dict[int, float]) -> None:
        self.time += 1
        values = torch.tensor(list(labels.values()), dtype=torch.float32)
        self.writer(version).append(torch.tensor(list(labels)), {"click": values}, step=0, scored_at=self.time)

    @rule(version=VERSIONS, keys=KEYS)
    def put(self, version: str, keys: list[int]) -> None:
        """New labels and equal second ones."""
        self.append(version, {key: usual(key) for key in keys})
        fresh = set(keys) - self.known[version] - set(self.pending[version])
        self.pending[version] |= {key: (usual(key), self.time) for key in fresh}

    @rule(version=VERSIONS, key=st.integers(0, 23), fresh=st.integers(0, 23))
    def conflict(self, version: str, key: int, fresh: int) -> None:
        """Another label for an example that the writer knows; nothing of the call is taken."""
        self.writer(version)
        if key not in self.known[version] | set(self.pending[version]):
            return
        with pytest.raises(LeakError):
            self.append(version, {fresh: usual(fresh), key: usual(key) + 1})

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def commit(self, data: Any) -> None:
        version = data.draw(st.sampled_from(sorted(self.writers)))
        if not self.pending[version] and version not in self.committed:
            return
        made = self.writers[version].commit()
        self.take(version)
        assert made.count == len(self.committed[version])

    def take(self, version: str) -> None:
        self.committed[version] = {**self.pending[version], **self.committed.get(version, {})}
        self.pending[version] = {}
        self.known[version] = set(self.committed[version])

    @rule(version=VERSIONS, keys=KEYS)
    def beside(self, version: str, keys: list[int]) -> None:
        """Another writer commits equal labels while the first one is at work."""
        self.time += 1
        values = torch.tensor([usual(key) for key in keys])
        with self.store.writer(version, tasks=["click"], mode=CaptureMode.PREQUENTIAL, view="v", facts={}) as writer:
            writer.append(torch.tensor(keys), {"click": values}, step=1, scored_at=self.time)
            writer.commit()
        labels = {key: (usual(key), self.time) for key in keys}
        self.committed[version] = {**labels, **self.committed.get(version, {})}

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), at=st.integers(0, 40), moment=st.sampled_from(MOMENTS))
    def crash_in_commit(self, data: Any, at: int, moment: str) -> None:
        """The commit happens in a process that dies; its labels are all there, or none."""
        version = data.draw(st.sampled_from(sorted(self.writers)))
        if not self.pending[version] and version not in self.committed:
            return
        finished = in_child(lambda: self.writers[version].commit() and None, Killer(at, moment))
        del self.writers[version]
        before, old = self.visible(), deepcopy(self.committed)
        self.take(version)
        self.pending.pop(version)
        fresh = ParquetLogitStore(self.path, self.rows)
        if self.counts(fresh) != {name: len(labels) for name, labels in self.committed.items()}:
            assert not finished
            assert self.shown(fresh) == before
            self.committed = old

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), clean=st.booleans())
    def forget(self, data: Any, clean: bool) -> None:
        """The writer aborts, or its process dies."""
        version = data.draw(st.sampled_from(sorted(self.writers)))
        writer = self.writers.pop(version)
        self.pending.pop(version)
        if clean:
            writer.abort()

    @rule(version=VERSIONS, back=st.integers(0, 5))
    def revoke(self, version: str, back: int) -> None:
        if version in self.committed and version not in self.revoked:
            since = self.time - back
            if since > max(at for _, at in self.committed[version].values()):
                with pytest.raises(UsageError, match="nothing would be revoked"):
                    self.store.revoke(version, reason="because", since=since)
                return
            self.store.revoke(version, reason="because", since=since)
            self.revoked[version] = since

    @precondition(lambda self: self.revoked)
    @rule(data=st.data())
    def restore(self, data: Any) -> None:
        version = data.draw(st.sampled_from(sorted(self.revoked)))
        self.store.restore(version)
        del self.revoked[version]

    @precondition(lambda self: self.committed)
    @rule(block=st.integers(1, 9), ends=st.integers(1, 4))
    def backfill(self, block: int, ends: int) -> None:
        """Examples that show no label get one of another teacher, a commit per block; the job ends early."""
        missing = IDS[unlabelled(self.store, sorted(self.committed), IDS)]
        shown = {key for labels in self.visible().values() for key in labels}
        assert set(missing.tolist()) == set(IDS.tolist()) - shown
        for keys in [missing[missing // block == number] for number in np.unique(missing // block)][:ends]:
            self.time += 1
            with self.store.writer(FILL, tasks=["click"], mode=CaptureMode.OUT_OF_FOLD, view="v", facts={}) as writer:
                writer.append(torch.from_numpy(keys), {"click": torch.zeros(keys.size)}, step=-1, scored_at=self.time)
                writer.commit()
            filled = {int(key): (0.0, self.time) for key in keys}
            assert not filled.keys() & self.committed.get(FILL, {}).keys()
            self.committed[FILL] = {**self.committed.get(FILL, {}), **filled}

    @precondition(lambda self: self.committed)
    @rule(data=st.data(), rows=st.integers(1, 9))
    def compact(self, data: Any, rows: int) -> None:
        version = data.draw(st.sampled_from(sorted(self.committed)))
        assert ParquetLogitStore(self.path, rows).compact(version).rows == len(self.committed[version])

    @precondition(lambda self: self.committed)
    @rule(name=st.sampled_from(["x", "y"]))
    def pin(self, name: str) -> None:
        if name not in self.pins:
            self.store.pin(name, by="the machine")
            self.pins[name] = self.visible()

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.pins)))
        self.store.unpin(name)
        del self.pins[name]

    @rule(version=VERSIONS, keys=KEYS)
    def collect(self, version: str, keys: list[int]) -> None:
        """Nothing may be lost, not even what a writer at work has spilled."""
        self.put(version, keys)
        self.store.gc(0)
        self.writers[version].commit()
        self.take(version)

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def align(self, data: Any) -> None:
        version = data.draw(st.sampled_from(sorted(self.committed)))
        found = self.store.aligned(LabelChoice((version,)), dataset="d", example_id=IDS, event_time=IDS).signal
        valid = found.valid["click"].numpy()
        logits = found.logits["click"].numpy()[valid].tolist()
        assert dict(zip(IDS[valid].tolist(), logits, strict=True)) == self.visible()[version]

    @rule()
    def reopen(self) -> None:
        self.store = ParquetLogitStore(self.path, self.rows)

    @invariant()
    def committed_labels_show_once(self) -> None:
        if not self.path.exists():
            return
        assert self.shown(self.store) == self.visible()
        assert self.counts(self.store) == {version: len(labels) for version, labels in self.committed.items()}

    def teardown(self) -> None:
        try:
            if self.path.exists():
                fresh = ParquetLogitStore(self.path)
                assert self.shown(fresh) == self.visible()
                for pin in fresh.pins():
                    assert self.shown(fresh.at(pin.snapshot)) == self.pins[pin.name]
                assert [entry for entry in fresh.verify() if entry.severity is Severity.ERROR] == []
        finally:
            self.writers.clear()
            shutil.rmtree(self.folder)


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=400 if ALL else 60,
    stateful_step_count=40 if ALL else 25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
