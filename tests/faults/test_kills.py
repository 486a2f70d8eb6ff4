"""kill -9 at every step of every change of a label store: what is left is the old state or the new one.

``RECDISTILL_KILLS=all`` kills at each step, in larger stores, some thousands of times; without it a few hundred times.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from crashing import sweep

from recdistill_core.labels import CaptureMode, LabelChoice
from recdistill_parquet import labels_log, labels_uncommitted
from recdistill_parquet.labels import ParquetLogitStore
from recdistill_parquet.labels_findings import Severity
from recdistill_parquet.labels_limits import Limits
from recdistill_parquet.labels_writer import ParquetLabelWriter

ALL = os.environ.get("RECDISTILL_KILLS") == "all"
#: Rows of a segment: small ones mean many files and many steps.
SEGMENT_ROWS = 1 if ALL else 8
#: Rows of a segment after compaction.
COMPACTED_ROWS = 8
Model = dict[int, float]
KILLS: dict[str, int] = {}


def opened(path: Path) -> ParquetLogitStore:
    return ParquetLogitStore(path, SEGMENT_ROWS, Limits(max_quarantined=0.5))


def writer_of(store: ParquetLogitStore) -> ParquetLabelWriter:
    return store.writer("v1", tasks=["click"], mode=CaptureMode.PREQUENTIAL, view="view", facts={})


def put(writer: ParquetLabelWriter, labels: Model, at: int = 0) -> None:
    ids, logits = torch.tensor(list(labels)), torch.tensor(list(labels.values()), dtype=torch.float32)
    writer.append(ids, {"click": logits}, step=at, scored_at=at)


def visible(store: ParquetLogitStore) -> Model:
    """All visible labels of ids below 1,000."""
    if not store.versions():
        return {}
    signal = store.read("v1", np.arange(1000))
    valid = signal.valid["click"]
    return dict(zip(torch.arange(1000)[valid].tolist(), signal.logits["click"][valid].tolist(), strict=True))


def numbers(first: int, last: int) -> Model:
    return {key: key % 64 / 8 for key in range(first, last)}


@dataclass
class Scenario:
    """What is killed, and which states it goes through.

    Attributes:
        before: makes the store that it starts with, or None.
        work: done in the child, and again afterwards; does nothing where it is done already.
        states: visible labels at first, in between and at last.
        after: what else must hold once the work is done.
    """

    before: Callable[[Path], None] | None
    work: Callable[[Path], None]
    states: Sequence[Model]
    after: Callable[[Path], None] = field(default=lambda path: None)


def _commit(path: Path, *parts: Model) -> None:
    with writer_of(opened(path)) as writer:
        for at, labels in enumerate(parts):
            put(writer, labels, at)
            writer.commit()


def _second(path: Path) -> None:
    _commit(path, numbers(10, 40))


def _two_writers(path: Path) -> None:
    with writer_of(opened(path)) as one, writer_of(opened(path)) as two:
        put(one, numbers(10, 30))
        put(two, numbers(20, 40))
        two.commit()
        one.commit()


def _in_background(work: Callable[[Path], None]) -> Callable[[Path], None]:
    """The same, with a thread for each segment."""

    def threaded(path: Path) -> None:
        least, labels_uncommitted.LEAST_IN_BACKGROUND = labels_uncommitted.LEAST_IN_BACKGROUND, 1
        try:
            work(path)
        finally:
            labels_uncommitted.LEAST_IN_BACKGROUND = least

    return threaded


def _implausible(path: Path) -> None:
    with writer_of(opened(path)) as writer:
        put(writer, {**numbers(10, 40), 900: float("nan"), 901: 99.0})
        writer.commit()


def _revoke(path: Path) -> None:
    store = opened(path)
    if not store.versions()[0].revoked:
        store.revoke("v1", reason="bad", since=1)


def _restore(path: Path) -> None:
    store = opened(path)
    if store.versions()[0].revoked:
        store.restore("v1")


def _revoked(path: Path) -> None:
    _commit(path, numbers(0, 10), numbers(10, 20))
    _revoke(path)


def _compact(path: Path) -> None:
    ParquetLogitStore(path, COMPACTED_ROWS).compact("v1")


def _parts(path: Path) -> None:
    _commit(path, *(numbers(3 * part, 3 * part + 3) for part in range(8)))


def _one_segment(path: Path) -> None:
    (entry,) = opened(path)._state().entries
    assert all(segment.rows == COMPACTED_ROWS for segment in entry.segments[:-1])


def _rubbish(path: Path) -> None:
    """A store with much to collect, and a pin that needs some of it."""
    _commit(path, numbers(0, 8), numbers(8, 11))
    store = opened(path)
    store.pin("run", by="me")
    _aligned(path)
    _commit(path, numbers(11, 24))
    _compact(path)
    for name in ("segments/v1-000077.parquet", "log/000000000099.json", "manifest.json.tmp", "pins/x.json.tmp"):
        (path / name).write_bytes(b"left")
    store.restore("v1") if store.versions()[0].revoked else None


def _collect(path: Path) -> None:
    opened(path).gc(0)


def _collected(path: Path) -> None:
    store = opened(path)
    assert store.gc(0).removed == ()
    old = store.at(store.pins()[0].snapshot)
    assert visible(old) == numbers(0, 11)


def _pin(path: Path) -> None:
    opened(path).pin("run", by="me")


def _pinned(path: Path) -> None:
    store = opened(path)
    assert [pin.snapshot for pin in store.pins()] == [store.snapshot_id()]


def _unpin(path: Path) -> None:
    store = opened(path)
    for pin in store.pins():
        store.unpin(pin.name)


def _aligned(path: Path) -> None:
    rows = np.arange(30)[::-1].copy()
    found = opened(path).aligned(LabelChoice(("v1",)), dataset="d", example_id=rows, event_time=rows)
    expected = numbers(0, 10) if found.snapshot == opened(path).log()[0]["id"] else visible(opened(path))
    valid = found.signal.valid["click"]
    assert dict(zip(rows[valid.numpy()].tolist(), found.signal.logits["click"][valid].tolist(), strict=True)) == {
        key: logit for key, logit in expected.items() if key < 30
    }


def _view_is_there(path: Path) -> None:
    """And it is used: whoever would read the segments now fails."""
    for segment in (path / "segments").iterdir():
        segment.rename(segment.with_suffix(".away"))
    _aligned_only(path)
    for segment in (path / "segments").iterdir():
        segment.rename(segment.with_suffix(".parquet"))


def _aligned_only(path: Path) -> None:
    rows = np.arange(30)[::-1].copy()
    found = opened(path).aligned(LabelChoice(("v1",)), dataset="d", example_id=rows, event_time=rows)
    assert int(found.signal.valid["click"].sum()) == 10


def _first_ten(path: Path) -> None:
    _commit(path, numbers(0, 10))


def _pinned_ten(path: Path) -> None:
    _first_ten(path)
    _pin(path)


def _to_the_checkpoint(path: Path) -> None:
    _commit(path, *({key: 0.5} for key in range(labels_log.CHECKPOINT_EVERY - 1)))


TEN, EVERY = numbers(0, 10), labels_log.CHECKPOINT_EVERY
UP_TO = dict.fromkeys(range(EVERY - 1), 0.5)
SCENARIOS = {
    "first commit": Scenario(None, _first_ten, [{}, TEN]),
    "second commit": Scenario(_first_ten, _second, [TEN, numbers(0, 40)]),
    "second commit with threads": Scenario(_first_ten, _in_background(_second), [TEN, numbers(0, 40)]),
    "commit beside another writer": Scenario(
        _first_ten, _two_writers, [TEN, {**TEN, **numbers(20, 40)}, numbers(0, 40)]
    ),
    "commit with implausible values": Scenario(_first_ten, _implausible, [TEN, numbers(0, 40)]),
    "commit with a stored state": Scenario(
        _to_the_checkpoint, lambda path: _commit(path, {EVERY - 1: 0.5}), [UP_TO, {**UP_TO, EVERY - 1: 0.5}]
    ),
    "revoke": Scenario(lambda path: _commit(path, TEN, numbers(10, 20)), _revoke, [numbers(0, 20), TEN]),
    "restore": Scenario(_revoked, _restore, [TEN, numbers(0, 20)]),
    "compact": Scenario(_parts, _compact, [numbers(0, 24)], _one_segment),
    "gc": Scenario(_rubbish, _collect, [numbers(0, 24)], _collected),
    "pin": Scenario(_first_ten, _pin, [TEN], _pinned),
    "unpin": Scenario(_pinned_ten, _unpin, [TEN]),
    "aligned view": Scenario(_first_ten, _aligned, [TEN], _view_is_there),
}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Each kill in a commit leaves a dead owner, which is logged."""
    caplog.set_level(logging.CRITICAL)


@pytest.mark.timeout(3600 if ALL else 600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_leaves_the_old_state_or_the_new_one(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    origin = None
    if scenario.before:
        origin = tmp_path / "origin"
        scenario.before(origin)

    def check(place: Path, finished: bool) -> None:
        seen = visible(opened(place))
        assert seen in (scenario.states[-1:] if finished else scenario.states)
        if (place / "manifest.json").exists():
            assert _errors(place) == []
        scenario.work(place)
        store = opened(place)
        assert visible(store) == scenario.states[-1]
        assert _errors(place) == []
        assert sum(segment.rows for entry in store._state().entries for segment in entry.segments) == len(
            max(scenario.states, key=len)
        )
        scenario.after(place)

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    KILLS[name] = sweep(origin, scratch, scenario.work, check, every=1 if ALL else 3)  # odd: both moments are taken
    assert KILLS[name] >= 4


def _errors(place: Path) -> list[str]:
    return [finding.what for finding in opened(place).verify() if finding.severity is Severity.ERROR]


def test_enough_was_killed(request: pytest.FixtureRequest) -> None:
    ran = {item.name for item in request.session.items if "leaves_the_old_state" in item.name}
    if len(ran) < len(SCENARIOS):
        pytest.skip("only some of the scenarios were selected")
    assert sum(KILLS.values()) >= (2000 if ALL else 200), KILLS
